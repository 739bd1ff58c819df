"""Lowering of a spec for TensorRT: strongly typed float16 or float32, S8 QDQ, INT4 blocks on W[k, n].

Precision is in the graph: half_precision.py writes the Casts, this file the QuantizeLinear and DequantizeLinear.
Weights and activations have no zero-points but 0.  What TensorRT has no kernel for is refused by its name: blocks of
int8, zero-points, ranges found while running.  FP8 and NVFP4 are not written yet.
"""

from __future__ import annotations

from onnx import ModelProto

from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect
from edgemm.export.lower_float import in_precision
from edgemm.export.products import Product, Writer, rewrite_products
from edgemm.export.quantized_weights import write_qdq
from edgemm.quantize.spec import HEAD, Layer, Spec

__all__ = ["lower_tensorrt", "refusal"]

BLOCKS = (64, 128)  # channels a scale of an INT4 weight may cover


def lower_tensorrt(
    component: str, reference: ModelProto, spec: Spec, precision: str, dialect: str, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    """The component's graph in the dialect; `precision` is that of what stays in float: fp16 or fp32."""
    model, real = in_precision(component, reference, precision, sizes)
    rewrite_products(model, lambda writer, product: _write(writer, product, spec), component)
    found = spec.coarsest(component)
    return in_dialect(model, dialect), real if found == "fp32" else found


def refusal(layer: Layer) -> str | None:
    """The construct that TensorRT does not take, in words."""
    if layer.activations not in ("float", "static"):
        return f"{layer.activations!r} activations (ranges found while running)"
    if not layer.symmetric:
        return "zero-points other than 0"
    if layer.bits == 8 and layer.group:
        return f"int8 weights in blocks of {layer.group}"
    if layer.bits == 4 and layer.group not in BLOCKS:
        return f"int4 weights in blocks of {layer.group} (it takes {' or '.join(map(str, BLOCKS))})"
    if layer.bits == 4 and layer.activations == "static":
        return "int4 weights beside int8 activations"
    return None


def _write(writer: Writer, product: Product, spec: Spec) -> str | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    construct = refusal(layer)
    if construct:
        raise InputError(f"{product.layer}: TensorRT takes no {construct}: quantize with --portable")
    return write_qdq(writer, product, spec)
