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
from onnx import ModelProto, NodeProto, TensorProto

from edgemm.errors import InputError
from edgemm.export.passes.rewriting import replace_nodes, value_shapes
from edgemm.export.products import Writer

__all__ = ["int8_cache"]


def int8_cache(model: ModelProto, steps: Mapping[str, np.ndarray]) -> bool:
    """In `model` itself; `steps` are (g, d) by `key.LAYER` and `value.LAYER`.  Answers whether it has a cache."""
    caches = {value.name for value in (*model.graph.input, *model.graph.output) if _is_cache(value.name)}
    if not caches:
        return False
    missing = sorted({_part(name) for name in caches} - steps.keys())
    if missing:
        raise InputError(f"the spec has an int8 cache, and no steps for {missing[0]}")
    shapes, writer = value_shapes(model), Writer(model)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in caches:
            value.type.tensor_type.elem_type = TensorProto.INT8
    for node in list(model.graph.node):
        if node.op_type == "TensorScatter" and node.input[0] in caches:
            node.input[1] = _codes(writer, node.input[1], node.input[0], steps)
            writer.nodes.append(node)
        elif node.op_type == "Attention" and node.input[1] in caches:
            _attend(writer, node, shapes[node.input[0]][1], steps)
        else:
            for place, name in enumerate(node.input):
                if name in caches:
                    (real,) = writer.add("Cast", name, to=TensorProto.FLOAT)
                    (node.input[place],) = writer.add("Mul", real, _constant(writer, name, _step(name, steps)))
            writer.nodes.append(node)
    replace_nodes(model, writer.nodes)
    return True


def _is_cache(name: str) -> bool:
    return name.startswith(("past_key.", "past_value.", "present_key.", "present_value."))


def _part(name: str) -> str:
    """past_key.3 -> key.3"""
    return name.partition("_")[2]


def _step(name: str, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    return steps[_part(name)][None, :, None].astype(np.float32)  # (1, g, 1, d)


def _constant(writer: Writer, name: str, step: np.ndarray, what: str = "step") -> str:
    return writer.constant(f"cache.{_part(name)}.{what}", step)


def _codes(writer: Writer, x: str, cache: str, steps: Mapping[str, np.ndarray]) -> str:
    (scaled,) = writer.add("Mul", x, _constant(writer, cache, 1 / _step(cache, steps), "per_step"))
    one, zero = (
        writer.constant("cache.one", np.ones((), np.float32)),
        writer.constant("cache.zero", np.zeros((), np.int8)),
    )
    return writer.add("QuantizeLinear", scaled, one, zero)[0]


def _attend(writer: Writer, node: NodeProto, heads: int | str | None, steps: Mapping[str, np.ndarray]) -> None:
    _, keys, values = node.input[:3]
    if not isinstance(heads, int):
        raise InputError(f"{node.name}: its number of heads is {heads!r}, expected a number")

    def wide(cache: str) -> str:
        """The step of the K/V head that each query head reads."""
        step = _step(cache, steps)
        return _constant(writer, cache, step.repeat(heads // step.shape[1], axis=1), "of_heads")

    (node.input[0],) = writer.add("Mul", node.input[0], wide(keys))
    (node.input[1],), (node.input[2],) = (writer.add("Cast", name, to=TensorProto.FLOAT) for name in (keys, values))
    given = node.output[0]
    node.output[0] = f"{given}/codes"
    writer.nodes.append(node)
    writer.add("Mul", node.output[0], wide(values), output=given)
