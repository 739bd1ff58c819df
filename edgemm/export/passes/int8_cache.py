"""The K/V cache in 8 bits: the same buffers, written in place, a quarter of their bytes.

    TensorScatter(past, k)                 ->  TensorScatter(past, QuantizeLinear(k / step)), past and present int8
    Attention(q, present, present', ...)   ->  Attention(q * step, Cast(present), Cast(present'), ...) * step'
    past read by anything else             ->  Cast(past) * step

A step belongs to a channel, so it moves from the keys to the queries, and from the values to what attention gives:
whole caches are cast, never multiplied.
Axes: b batch, h/g query and K/V heads, s tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgemm.errors import InputError
from edgemm.export.passes.rewriting import Writer, dims, infer

__all__ = ["int8_cache"]


def int8_cache(model: ir.Model, steps: Mapping[str, np.ndarray]) -> bool:
    """In `model` itself; `steps` are (g, d) by `key.LAYER` and `value.LAYER`.  Answers whether it has a cache."""
    caches = [value for value in (*model.graph.inputs, *model.graph.outputs) if _is_cache(value)]
    if not caches:
        return False
    missing = sorted({_part(value) for value in caches} - steps.keys())
    if missing:
        raise InputError(f"the spec has an int8 cache, and no steps for {missing[0]}")
    infer(model)
    writer = Writer(model)
    for value in caches:
        value.type = ir.TensorType(ir.DataType.INT8)
    for node in list(model.graph):
        writer.place = node
        if node.op_type == "TensorScatter" and node.inputs[0] in caches:
            _scatter(writer, node, steps)
        elif node.op_type == "Attention" and node.inputs[1] in caches:
            _attend(writer, node, steps)
        else:
            for place, value in enumerate(node.inputs):
                if value in caches:
                    real = writer.make("Cast", value, to=ir.DataType.FLOAT)
                    real = writer.make("Mul", real, _constant(writer, value, _step(value, steps)))
                    node.replace_input_with(place, real)
    return True


def _is_cache(value: ir.Value) -> bool:
    return (value.name or "").startswith(("past_key.", "past_value.", "present_key.", "present_value."))


def _part(cache: ir.Value) -> str:
    """past_key.3 -> key.3"""
    return (cache.name or "").partition("_")[2]


def _step(cache: ir.Value, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    return steps[_part(cache)][None, :, None].astype(np.float32)  # (1, g, 1, d)


def _constant(writer: Writer, cache: ir.Value, step: np.ndarray, what: str = "step") -> ir.Value:
    return writer.constant(step, name=f"cache.{_part(cache)}.{what}")


def _scatter(writer: Writer, node: ir.Node, steps: Mapping[str, np.ndarray]) -> None:
    cache, x = node.inputs[:2]
    assert cache is not None
    scaled = writer.make("Mul", x, _constant(writer, cache, 1 / _step(cache, steps), "per_step"))
    one, zero = writer.constant(1, np.float32), writer.constant(0, np.int8)
    node.replace_input_with(1, writer.make("QuantizeLinear", scaled, one, zero))


def _attend(writer: Writer, node: ir.Node, steps: Mapping[str, np.ndarray]) -> None:
    queries, keys, values, *rest = node.inputs
    assert keys is not None and values is not None
    heads = dims(queries)[1] if len(dims(queries)) > 1 else None
    if not isinstance(heads, int):
        raise InputError(f"{node.name}: its number of heads is {heads!r}, expected a number")

    def wide(cache: ir.Value) -> ir.Value:
        """The step of the K/V head that each query head reads."""
        step = _step(cache, steps)
        return _constant(writer, cache, step.repeat(heads // step.shape[1], axis=1), "of_heads")

    inputs = [writer.make("Mul", queries, wide(keys))]
    inputs += [writer.make("Cast", cache, to=ir.DataType.FLOAT) for cache in (keys, values)]
    (codes,) = writer.make_many("Attention", [*inputs, *rest], 1, "", **dict(node.attributes))
    writer.replace(node, writer.make("Mul", codes, wide(values)))
