"""Lowering of a spec for TensorRT: strongly typed float16 or float32, S8 QDQ, INT4 blocks on W[k, n], FP8, NVFP4.

Precision is in the graph: lower_cuda.py writes the Casts, this file the QuantizeLinear and DequantizeLinear.
Weights and activations have no zero-points but 0.  What TensorRT has no kernel for is refused by its name: blocks of
int8, zero-points, ranges found while running; and numbers that a target's GPU does not multiply.  Inputs in NVFP4 need
an operator of NVIDIA's own: ONNX has none that rounds in blocks by scales found while running.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect, say_promised_opset
from edgemm.export.lower_cuda import in_precision
from edgemm.export.passes.rewriting import Writer
from edgemm.export.products import Product, rewrite_products, write_beside
from edgemm.export.schemes import TARGETS, offered_precisions
from edgemm.quantize.calibration import reader_of
from edgemm.quantize.number_formats import BLOCK, E4M3_LARGEST, FLOAT_FORMS, Floats, Integers, as_e4m3, whole_of
from edgemm.quantize.spec import HEAD, RANGED, Layer, Spec

__all__ = ["check_target", "lower_tensorrt", "refusal", "DYNAMIC_FP4", "TRT", "write_qdq"]

BLOCKS = (64, 128)  # channels a scale of an INT4 weight may cover


def lower_tensorrt(
    component: str,
    reference: ir.Model,
    spec: Spec,
    precision: str,
    dialect: str,
    sizes: Mapping[str, Mapping[str, int]],
) -> tuple[ir.Model, str]:
    """The component's graph in the dialect; `precision` is that of what stays in float: fp16 or fp32."""
    model, real = in_precision(component, reference, precision, sizes)
    model = in_dialect(model, dialect)
    rewrite_products(model, lambda writer, product: _write(writer, product, spec), component)
    if any(node.domain == TRT for node in model.graph):
        model.opset_imports[TRT] = 1
    say_promised_opset(model)
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
        wanted, weights = {layer.form}, f"{layer.form} weights"
        if layer.activations == "float":
            wanted, weights = wanted | {"nvfp4-weights"}, f"{weights} beside float16 inputs"
        takers = [other for other in TARGETS if wanted <= set(offered_precisions(other))]
        if target not in takers:
            raise InputError(f"{name}: target {target} has no kernels for {weights}, only: {', '.join(takers)}")


def _write(writer: Writer, product: Product, spec: Spec) -> ir.Value | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    construct, width = refusal(layer), product.weight().shape[1]
    if not construct and layer.form == "int" and layer.group and width % layer.group:
        construct = f"blocks of {layer.group} in a weight of {width} input channels, which is no multiple"
    if construct:
        raise InputError(f"{product.layer}: TensorRT takes no {construct}: quantize with --portable")
    return write_qdq(writer, product, spec)


# A spec's numbers as QuantizeLinear and DequantizeLinear, which compilers (TensorRT, OpenVINO) fuse themselves.
#
# Weights lie [k, n]; every zero-point is there and typed, because a DequantizeLinear without one is read as int8 by
# older parsers.  Scales of NVFP4 are float8 and have a scale themselves: two DequantizeLinear, one after the other.
# Which forms a target takes is its lowering's to check.
# Axes: n output channels, k input channels, g groups along k.

TRT, DYNAMIC_FP4 = "trt", "TRT_FP4DynamicQuantize"  # NVIDIA's own domain and operator
FP8, FP4 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1
Blocks = tuple[ir.Value, ...]  # NVFP4's codes, scales, the scale of scales and, beside stored scales, zero-points
KINDS = {"static": (ir.DataType.INT8, 127.0), "fp8": (FP8, E4M3_LARGEST)}  # of inputs -> type, largest number


def write_qdq(writer: Writer, product: Product, spec: Spec) -> ir.Value:
    """Nodes for one product, in the type that its weight has in this graph."""
    layer, name = spec.layer(product.layer), product.layer
    real = product.dtype.numpy()
    x = product.x
    if layer.activations in RANGED:
        largest = float(spec.tensors[f"{name}.range"].max())
        x = _rounded(writer, x, layer.activations, reader_of(name), largest, real)
    numbers = spec.numbers(name)
    if isinstance(numbers, Integers):
        weight = _integers(writer, name, layer, numbers, real)
    else:
        weight = _floats(writer, name, numbers, real)
    return write_beside(writer, product, spec, writer.make("MatMul", x, weight))


def _rounded(writer: Writer, x: ir.Value, kind: str, site: str, largest: float, real: np.dtype) -> ir.Value:
    """Layers that read the same activation share these nodes."""
    if kind == "nvfp4":
        whole = writer.constant(whole_of(torch.tensor(largest)).numpy().reshape(()), name=f"{site}.input_whole")
        codes, scales = writer.make_many(DYNAMIC_FP4, (x, whole), 2, TRT, axis=-1, block_size=BLOCK, scale_type=FP8)
        return _blocks(writer, (codes, scales, whole), -1, real)
    dtype, most = KINDS[kind]
    if largest / most < float(np.finfo(real).tiny):
        raise InputError(f"{site}: its inputs are never larger than {largest:g}, too small for {real}")
    scale = writer.constant(largest / most, real, name=f"{site}.input_scale")
    zero = writer.constant(_typed(np.zeros((), np.uint8), dtype), name=f"{kind}_zero")
    return writer.make("DequantizeLinear", writer.make("QuantizeLinear", x, scale, zero), scale, zero)


def _integers(writer: Writer, name: str, layer: Layer, numbers: Integers, real: np.dtype) -> ir.Value:
    middle = 2 ** (numbers.bits - 1)
    codes = numbers.codes.numpy().astype(np.int16).T - middle  # [k, n]
    scales = numbers.scales.numpy().T.astype(real)  # [g, n]
    zeros = numbers.zeros.numpy().astype(np.int16).T - middle
    kind = ir.DataType.INT8 if numbers.bits == 8 else ir.DataType.INT4
    if not layer.group:
        scales, zeros = scales[0], zeros[0]
    inputs = (
        writer.constant(_typed(codes, kind), name=f"{name}.codes"),
        writer.constant(scales, name=f"{name}.scales"),
        writer.constant(_typed(zeros, kind), name=f"{name}.zeros"),
    )
    if layer.group:
        return writer.make("DequantizeLinear", *inputs, axis=0, block_size=layer.group)
    return writer.make("DequantizeLinear", *inputs, axis=1)


def _floats(writer: Writer, name: str, numbers: Floats, real: np.dtype) -> ir.Value:
    codes, scales = numbers.codes.numpy().T, numbers.scales.T  # [k, n], [g, n]

    def constant(part: str, bits: np.ndarray, kind: ir.DataType) -> ir.Value:
        return writer.constant(_typed(bits, kind), name=f"{name}.{part}")

    if numbers.form == "fp8":
        scale = writer.constant(scales[0].numpy(), real, name=f"{name}.scales")
        zeros = constant("zeros", np.zeros(codes.shape[1], np.uint8), FP8)
        return writer.make("DequantizeLinear", constant("codes", codes, FP8), scale, zeros, axis=1)
    whole = writer.constant(numbers.whole.numpy().reshape(()), name=f"{name}.whole")
    bits = as_e4m3(scales).view(torch.uint8).numpy()
    zeros = constant("zeros", np.zeros(bits.shape, np.uint8), FP4)
    return _blocks(writer, (constant("codes", codes, FP4), constant("scales", bits, FP8), whole, zeros), 0, real)


def _blocks(writer: Writer, numbers: Blocks, axis: int, real: np.dtype) -> ir.Value:
    """NVFP4 back in float: the scales first, then by them the numbers.

    A Cast, because TensorRT for RTX 1.7 parses an output_dtype other than the scales' and then cannot build it.
    """
    codes, scales, whole, *zeros = numbers
    zero = writer.constant(_typed(np.zeros((), np.uint8), FP8), name="fp8_zero")
    scale = writer.make("DequantizeLinear", scales, whole, zero)
    value = writer.make("DequantizeLinear", codes, scale, *zeros, axis=axis, block_size=BLOCK)
    return value if real == np.float32 else writer.make("Cast", value, to=ir.DataType.from_numpy(real))


def _typed(codes: np.ndarray, kind: ir.DataType) -> ir.TensorProtocol:
    """Numbers of 4 bits lie two a byte, the first in the low half."""
    if kind in (ir.DataType.INT8, FP8):
        return ir.Tensor(codes.astype(np.int8 if kind == ir.DataType.INT8 else np.uint8, order="C"), kind)
    flat = (codes.reshape(-1) & 15).astype(np.uint8)
    flat = np.pad(flat, (0, flat.size % 2))
    return ir.PackedTensor(flat[::2] | (flat[1::2] << 4), kind, shape=codes.shape)
