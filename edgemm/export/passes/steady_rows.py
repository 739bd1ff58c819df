"""One token read alone has the numbers that it has among others, bit for bit: candidates that were checked together.

A product of one row adds up in another order than one of several, and attention is such a product.  The last bit of a
float then differs, an activation is rounded to the other side, and the reply is another.  So a token alone is attended
to as two: the second is the first once more, its slot lies behind what was read, and its row is dropped.

    GroupQueryAttention(x, ...)          ->   Slice(GroupQueryAttention(Concat(x, its last row), ...)), of one token
    MatMulNBits(x) in blocks of 128...   ->   the same, of an odd number of tokens: its kernel takes rows in pairs

Products of whole numbers, and of narrower blocks, give a row the same bits beside any others (ONNX Runtime 1.32, x86).
The last slot of a cache has none behind it: a token there stays alone, and the runtime lets no candidate stand there.
Several rows (b > 1) stay as they are.
Axes: b batch, s new tokens, N tokens of the longest row.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.export.passes.rewriting import CONTRIB, Writer, dims, new_tokens, nodes_of

__all__ = ["steady_rows"]

NARROW = 64  # channels; MatMulNBits' kernel for wider blocks takes rows in pairs
EVERYTHING = np.iinfo(np.int64).max


def steady_rows(model: ir.Model) -> None:
    """In `model` itself, which has been through grouped_attention."""
    writer = Writer(model)
    inputs = {value.name: value for value in model.graph.inputs}
    attentions = nodes_of(model, "GroupQueryAttention", CONTRIB)
    cache = attentions[0].inputs[3] if attentions else None
    for node in list(model.graph):
        writer.place = node
        if node in attentions:
            more = _behind_one_token(writer, inputs, cache)
            _attend(writer, node, more, new_tokens(writer, inputs))
        elif node.op_type == "MatMulNBits" and node.attributes.get_int("block_size", 0) > NARROW:
            _pair(writer, node, new_tokens(writer, inputs))


def _pair(writer: Writer, product: ir.Node, rows: ir.Value) -> None:
    x, *weights = product.inputs
    assert x is not None
    axis = len(dims(x)) - 2  # (b, s, k) in layers, (rows, k) before the head
    if axis < 0:
        return
    if axis == 0:
        rows = writer.make("Shape", x, start=0, end=1)
    odd = writer.make("Mod", rows, writer.constant([2]))
    _put(writer, product, [_longer(writer, x, odd, rows, axis), *weights], rows, axis)


def _behind_one_token(writer: Writer, inputs: dict[str | None, ir.Value], cache: ir.Value | None) -> ir.Value:
    """1 where b = s = 1 and the cache has a slot behind the token, else 0; (1)."""
    tokens = writer.make("ReduceProd", writer.make("Shape", inputs["input_ids"], start=0, end=2), keepdims=1)
    alone = writer.make("Equal", tokens, writer.constant([1]))
    last = writer.make("Shape", cache, start=2, end=3)
    used = writer.make("Add", writer.make("ReduceMax", inputs["write_index"], keepdims=1), writer.constant([1]))
    both = writer.make("And", alone, writer.make("Less", used, last))
    return writer.make("Cast", both, to=ir.DataType.INT64)


def _attend(writer: Writer, node: ir.Node, more: ir.Value, rows: ir.Value) -> None:
    *pieces, past_key, past_value, ends, total, cosines, sines, positions, bias = node.inputs
    assert positions is not None and bias is not None
    longer = [value and _longer(writer, value, more, rows) for value in pieces]
    count = writer.make("Cast", more, to=ir.DataType.INT32)
    later = writer.make("Add", _last(writer, positions, more, rows, 1), writer.constant([1]))
    hidden = writer.make("Concat", _longer(writer, bias, more, rows, axis=2), _column(writer, bias, more, rows), axis=3)
    ends, total = (writer.make("Add", value, count) for value in (ends, total))
    positions = writer.make("Concat", positions, later, axis=1)
    _put(writer, node, [*longer, past_key, past_value, ends, total, cosines, sines, positions, hidden], rows)


def _column(writer: Writer, bias: ir.Value, more: ir.Value, rows: ir.Value) -> ir.Value:
    """(b, 1, s + more, more) of what hides: nobody sees the slot behind."""
    one = writer.constant([1])
    shape = writer.make("Concat", one, one, writer.make("Add", rows, more), more, axis=0)
    return writer.make("Expand", writer.constant([-np.inf], np.float32), shape)


def _last(writer: Writer, x: ir.Value, more: ir.Value, rows: ir.Value, axis: int) -> ir.Value:
    """The last `more` of so many rows."""
    start, end = writer.make("Sub", rows, more), writer.constant([EVERYTHING])
    return writer.make("Slice", x, start, end, writer.constant([axis]))


def _longer(writer: Writer, x: ir.Value, more: ir.Value, rows: ir.Value, axis: int = 1) -> ir.Value:
    return writer.make("Concat", x, _last(writer, x, more, rows, axis), axis=axis)


def _put(writer: Writer, node: ir.Node, inputs: list[ir.Value | None], rows: ir.Value, axis: int = 1) -> None:
    """The same node over longer inputs, and what it gives cut back to so many rows."""
    settings = {name: item.value for name, item in node.attributes.items()}
    made, *rest = writer.make_many(node.op_type, inputs, len(node.outputs), node.domain, **settings)
    cut = writer.make("Slice", made, writer.constant([0]), rows, writer.constant([axis]))
    writer.replace(node, cut, *rest)
