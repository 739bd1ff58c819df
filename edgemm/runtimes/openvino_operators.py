"""Operators of the bundle's graphs that OpenVINO does not know, or knows otherwise, in operators that it does.

Its own GroupQueryAttention gives a cache that grew by the new tokens; ours is written in place and keeps its size.
Axes: b batch, s new tokens, T cache slots, t tokens of the longest row, h/g query and K/V heads, d head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset14 as ops
from openvino.frontend.onnx import ConversionExtension

__all__ = ["extensions"]

SLOT_AXIS = 2


def extensions() -> list[ConversionExtension]:
    return [
        ConversionExtension("TensorScatter", "", _scatter),
        ConversionExtension("GroupQueryAttention", "com.microsoft", _grouped_attention),
    ]


def _scatter(node: Any) -> Any:
    """TensorScatter (opset 24, linear)."""
    if node.get_attribute("axis") != SLOT_AXIS:
        raise ValueError(f"TensorScatter along axis {node.get_attribute('axis')}, expected {SLOT_AXIS}")
    return _written(*(node.get_input(place) for place in range(3))).outputs()


def _written(cache: Any, rows: Any, index: Any) -> Any:
    """Rows (b, g, s, d) written into (b, g, T, d) from slot index (b) on."""
    whole, axis, zero, one = ops.shape_of(rows, "i64"), _whole(SLOT_AXIS), _whole(0), _whole(1)
    steps = ops.range(zero, ops.gather(whole, axis, zero), one, output_type="i64")  # (s)
    steps = ops.unsqueeze(steps, _whole([0, 1, 3]))
    slots = ops.broadcast(ops.add(ops.unsqueeze(index, _whole([1, 2, 3])), steps), whole)  # (b, g, s, d)
    return ops.scatter_elements_update(cache, slots, rows, axis)


def _grouped_attention(node: Any) -> Any:
    """As passes/grouped_attention.py writes it: with rotary tables, positions and a bias, no mask of its own."""
    h, g = (node.get_attribute(name) for name in ("num_heads", "kv_num_heads"))
    past = [node.get_input(place) for place in (3, 4)]
    lasts, longest, cosines, sines, positions, bias = (node.get_input(place) for place in range(5, 11))
    d = past[0].get_partial_shape()[3].get_length()
    queries, keys, values = _heads(node, h, g, d)
    cos, sin = (ops.unsqueeze(ops.gather(table, positions, _whole(0)), _whole(1)) for table in (cosines, sines))
    queries, keys = (_turned(part, cos, sin, d // 2) for part in (queries, keys))
    s = ops.gather(ops.shape_of(keys, "i64"), _whole(SLOT_AXIS), _whole(0))
    index = ops.subtract(ops.add(ops.convert(lasts, "i64"), _whole(1)), s)  # (b)
    present = [_written(cache, part, index) for cache, part in zip(past, (keys, values))]
    end = ops.reshape(ops.convert(longest, "i64"), _whole([1]), special_zero=False)
    seen = [ops.slice(p, _whole([0]), end, _whole([1]), _whole([SLOT_AXIS])) for p in present]  # (b, g, t, d)
    attended = ops.scaled_dot_product_attention(queries, *(_repeated(p, h, g, d) for p in seen), bias)
    flat = ops.reshape(ops.transpose(attended, _whole([0, 2, 1, 3])), _whole([0, 0, h * d]), special_zero=True)
    return [flat.output(0), *(p.output(0) for p in present)]


def _heads(node: Any, h: int, g: int, d: int) -> list[Any]:
    """Queries, keys and values (b, heads, s, d), out of one piece or of three."""
    pieces = [node.get_input(0)]
    if node.get_input(1).get_node().get_type_name() != "NullNode":
        pieces += [node.get_input(1), node.get_input(2)]
    split = [ops.reshape(piece, _whole([0, 0, -1, d]), special_zero=True) for piece in pieces]
    parts = split if len(split) > 1 else ops.variadic_split(split[0], _whole(2), _whole([h, g, g])).outputs()
    return [ops.transpose(part, _whole([0, 2, 1, 3])) for part in parts]


def _turned(x: Any, cosines: Any, sines: Any, half: int) -> Any:
    """Rotary embedding of (b, heads, s, d) by tables (b, 1, s, d / 2)."""
    left, right = ops.variadic_split(x, _whole(3), _whole([half, half])).outputs()
    turned = (
        ops.subtract(ops.multiply(left, cosines), ops.multiply(right, sines)),
        ops.add(ops.multiply(right, cosines), ops.multiply(left, sines)),
    )
    return ops.concat(list(turned), 3)


def _repeated(x: Any, h: int, g: int, d: int) -> Any:
    """(b, g, t, d) -> (b, h, t, d)."""
    if h == g:
        return x
    each = ops.broadcast(ops.unsqueeze(x, _whole(2)), _whole([1, 1, h // g, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(each, _whole([0, h, -1, d]), special_zero=True)


def _whole(value: int | list[int]) -> Any:
    return ops.constant(value, np.int64)
