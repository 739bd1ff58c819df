"""Lowering of a spec for OpenVINO: float32 ONNX of opset 21, DequantizeLinear on weights, QDQ on static activations.

OpenVINO keeps such weights compressed and multiplies in int8 where both sides are.  Ranges found while running are
its own business (its CPU plugin rounds inputs of compressed weights by itself), so a spec cannot ask for them.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect
from edgemm.export.lower_tensorrt import write_qdq
from edgemm.export.passes.rewriting import Writer
from edgemm.export.products import Product, rewrite_products
from edgemm.quantize.spec import HEAD, Spec

__all__ = ["lower_openvino"]


def lower_openvino(component: str, reference: ir.Model, spec: Spec) -> tuple[ir.Model, str]:
    """The component's graph with the spec's numbers, and the precision to call it by.  Changes `reference` itself."""
    rewrite_products(reference, lambda writer, product: _write(writer, product, spec), component)
    return in_dialect(reference, "portable-21"), spec.coarsest(component)


def _write(writer: Writer, product: Product, spec: Spec) -> ir.Value | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    if layer.form != "int":
        raise InputError(f"{product.layer}: OpenVINO takes no {layer.form} weights: quantize with int8 or int4")
    if layer.activations not in ("float", "static"):
        raise InputError(
            f"{product.layer}: OpenVINO takes no {layer.activations!r} activations: quantize with --portable, whose "
            "ranges are static"
        )
    return write_qdq(writer, product, spec)
