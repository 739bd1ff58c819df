"""Lowering of a spec for ONNX Runtime on CUDA: float16 with MatMulNBits on the spec's own 4- and 8-bit numbers.

Built only: nobody has run it on a GPU yet.  Its int8 activations would run on the CPU, so they are refused.
"""

from __future__ import annotations

from onnx import ModelProto, helper

from edgemm.errors import InputError
from edgemm.export.lower_float import in_precision
from edgemm.export.lower_ort_cpu import CONTRIB, write_blocks
from edgemm.export.products import Product, Writer, rewrite_products
from edgemm.quantize.spec import HEAD, Spec

__all__ = ["lower_ort_cuda"]


def lower_ort_cuda(
    component: str, reference: ModelProto, spec: Spec, precision: str, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    """The component's graph, and the precision to call it by."""
    model, real = in_precision(component, reference, precision, sizes)
    found = spec.coarsest(component)
    if found == "fp32":
        return model, real
    rewrite_products(model, lambda writer, product: _write(writer, product, spec), component)
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model, found


def _write(writer: Writer, product: Product, spec: Spec) -> str | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    if layer.activations not in ("float", "block"):
        raise InputError(
            f"{product.layer}: ONNX Runtime CUDA takes no {layer.activations!r} activations: quantize with --portable"
        )
    return write_blocks(writer, product, spec)
