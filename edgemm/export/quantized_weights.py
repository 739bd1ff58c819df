"""A spec's numbers as QuantizeLinear and DequantizeLinear, which compilers (TensorRT, OpenVINO) fuse themselves.

Weights lie [k, n]; every zero-point is there and typed, because a DequantizeLinear without one is read as int8 by older
parsers.  Which forms a target takes is its lowering's to check.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from edgemm.errors import InputError
from edgemm.export.products import Product, Writer
from edgemm.quantize.integers import Integers
from edgemm.quantize.spec import Layer, Spec

__all__ = ["write_qdq"]


def write_qdq(writer: Writer, product: Product, spec: Spec) -> str:
    """Nodes for one product, in the type that its weight has in this graph."""
    layer, name = spec.layer(product.layer), product.layer
    real = helper.tensor_dtype_to_np_dtype(product.dtype)
    x = product.x
    if layer.activations == "static":
        largest = float(spec.tensors[f"{name}.range"].max())
        if largest / 127 < float(np.finfo(real).tiny):
            raise InputError(f"{name}: its inputs are never larger than {largest:g}, too small for {real}")
        scale = writer.constant(f"{name}.input_scale", np.array(largest / 127, real))
        zero = writer.constant("int8_zero", np.zeros((), np.int8))
        (x,) = writer.add("DequantizeLinear", *writer.add("QuantizeLinear", x, scale, zero), scale, zero)
    (y,) = writer.add("MatMul", x, _weight(writer, name, layer, spec.integers(name), real))
    branch = spec.low_rank(name)
    if branch:
        down, up = (
            writer.constant(f"{name}.{side}", array.T.astype(real)) for side, array in zip(("down", "up"), branch)
        )
        (narrow,) = writer.add("MatMul", product.x, down)
        (y,) = writer.add("Add", y, *writer.add("MatMul", narrow, up))
    if product.bias:
        (y,) = writer.add("Add", y, product.bias)
    return y


def _weight(writer: Writer, name: str, layer: Layer, numbers: Integers, real: np.dtype) -> str:
    middle = 2 ** (numbers.bits - 1)
    codes = numbers.codes.numpy().astype(np.int16).T - middle  # [k, n]
    scales = numbers.scales.numpy().T.astype(real)  # [g, n]
    zeros = numbers.zeros.numpy().astype(np.int16).T - middle
    kind = TensorProto.INT8 if numbers.bits == 8 else TensorProto.INT4
    if not layer.group:
        scales, zeros = scales[0], zeros[0]
    inputs = (
        writer.constant(f"{name}.codes", _typed(codes, kind)),
        writer.constant(f"{name}.scales", scales),
        writer.constant(f"{name}.zeros", _typed(zeros, kind)),
    )
    if layer.group:
        return writer.add("DequantizeLinear", *inputs, axis=0, block_size=layer.group)[0]
    return writer.add("DequantizeLinear", *inputs, axis=1)[0]


def _typed(codes: np.ndarray, kind: int) -> TensorProto:
    """int4 lies two a byte, the first in the low half."""
    if kind == TensorProto.INT8:
        raw = np.ascontiguousarray(codes.astype(np.int8)).tobytes()
    else:
        flat = (codes.reshape(-1) & 15).astype(np.uint8)
        flat = np.pad(flat, (0, flat.size % 2))
        raw = (flat[::2] | (flat[1::2] << 4)).tobytes()
    return helper.make_tensor("", kind, codes.shape, raw, raw=True)
