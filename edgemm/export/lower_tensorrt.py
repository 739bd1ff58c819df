"""Lowering of a spec for TensorRT: strongly typed float16 or float32, S8 QDQ, INT4 blocks on W[k, n], FP8, NVFP4.

Precision is in the graph: half_precision.py writes the Casts, this file the QuantizeLinear and DequantizeLinear.
Weights and activations have no zero-points but 0.  What TensorRT has no kernel for is refused by its name: blocks of
int8, zero-points, ranges found while running; and numbers that a target's GPU does not multiply.  Inputs in NVFP4 need
an operator of NVIDIA's own: ONNX has none that rounds in blocks by scales found while running.
"""

from __future__ import annotations

from onnx import ModelProto, helper

from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect
from edgemm.export.lower_float import in_precision
from edgemm.export.products import Product, Writer, rewrite_products
from edgemm.export.quantized_weights import TRT, write_qdq
from edgemm.export.targets import TARGETS
from edgemm.quantize.floats import FLOAT_FORMS
from edgemm.quantize.spec import HEAD, Layer, Spec

__all__ = ["check_target", "lower_tensorrt", "refusal"]

BLOCKS = (64, 128)  # channels a scale of an INT4 weight may cover


def lower_tensorrt(
    component: str, reference: ModelProto, spec: Spec, precision: str, dialect: str, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    """The component's graph in the dialect; `precision` is that of what stays in float: fp16 or fp32."""
    model, real = in_precision(component, reference, precision, sizes)
    model = in_dialect(model, dialect)
    rewrite_products(model, lambda writer, product: _write(writer, product, spec), component)
    if any(node.domain == TRT for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(TRT, 1))
    found = spec.coarsest(component)
    return model, real if found == "fp32" else found


def refusal(layer: Layer) -> str | None:
    """The construct that TensorRT does not take, in words."""
    if layer.form != "int" or layer.activations in FLOAT_FORMS:
        return _refusal_of_floats(layer)
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


def _refusal_of_floats(layer: Layer) -> str | None:
    if layer.activations in (layer.form, "float") and layer.form != "int":
        return None
    weights = f"int{layer.bits}" if layer.form == "int" else layer.form
    return f"{weights} weights beside {layer.activations!r} activations"


def check_target(spec: Spec, target: str) -> None:
    """InputError where the spec has numbers that the target's GPU has no kernels for.

    TensorRT for RTX keeps small floats as they are beside float16 inputs too; TensorRT may widen the weights without a
    word: https://github.com/NVIDIA/TensorRT/issues/4833.
    """
    for name, layer in spec.document.layers.items():
        if layer.bits is None or layer.form == "int":
            continue
        takers = [other for other, row in TARGETS.items() if layer.form in row.precisions]
        weights = f"{layer.form} weights"
        if layer.activations == "float":
            takers, weights = [other for other in takers if other == "rtx"], f"{weights} beside float16 inputs"
        if target not in takers:
            raise InputError(f"{name}: target {target} has no kernels for {weights}, only: {', '.join(takers)}")


def _write(writer: Writer, product: Product, spec: Spec) -> str | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    construct = refusal(layer)
    if construct:
        raise InputError(f"{product.layer}: TensorRT takes no {construct}: quantize with --portable")
    return write_qdq(writer, product, spec)
