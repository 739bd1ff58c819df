"""Rotary embedding, cache and attention of a layer as ONNX Runtime's one operator, GroupQueryAttention.

    q = RotaryEmbedding(heads(x)); past <- k, v; Attention(q, past)   ->   GroupQueryAttention(x..., past, tables, bias)

Where queries, keys and values are parts of one product (ort_cpu_graph.py) it takes them in one piece.  It looks no
further than the last token, where Attention scores every slot of the cache.  What a token may see stays
`attention_limit`'s to say: it is added as a bias, the operator's own causal mask is off, so the tokens of a picture see
one another.  Rotary angles become two tables, as long as the longest context.
The operator takes several tokens a row for several rows at once only where nothing was read before.
Axes: b batch, s new tokens, T cache slots, h/g query and K/V heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.export.passes.rewriting import CONTRIB, Writer, dims, drop_unread, made_by, new_tokens, nodes_of

__all__ = ["grouped_attention"]

HEADS_FIRST = (0, 2, 1, 3)  # (b, s, h, d) -> (b, h, s, d), and back
ROTARY_STEP = 16  # the operator turns head widths that are multiples of it


@dataclass(frozen=True)
class Found:
    """One layer's attention; q, k and v (b, s, heads, d) before they are turned."""

    last: ir.Node  # gives (b, s, h * d)
    parts: tuple[ir.Value, ir.Value, ir.Value]
    caches: tuple[ir.Node, ir.Node]  # the TensorScatter of keys, and of values
    tables: tuple[ir.Value, ir.Value]  # cosines and sines of the new tokens
    heads: tuple[int, int]
    scale: float


def grouped_attention(model: ir.Model, slots: int) -> bool:
    """In `model` itself, for contexts of at most `slots`; answers whether it found any.

    Shapes have to be known: those of the reference graph are, whatever its products have become.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    matches = [found for node in nodes_of(model, "Attention") if (found := _match(node))]
    matches = [found for found in matches if _turns_by_position(found.tables)]
    if not matches:
        return False
    writer = Writer(model)
    pairs = dict.fromkeys(found.tables for found in matches)
    tables = {pair: _tables(model, writer, pair, slots) for pair in pairs}
    for found in matches:
        _write(writer, inputs, found, tables[found.tables])
    model.opset_imports.setdefault(CONTRIB, 1)
    drop_unread(model)
    return True


def _match(attention: ir.Node) -> Found | None:
    if len(attention.inputs) != 4 or set(attention.attributes) - {"scale"}:
        return None
    q, k, v, mask = attention.inputs
    last, queries = _flattened(attention.outputs[0]), _turned(q)
    k_cache, v_cache = made_by(k, "TensorScatter"), made_by(v, "TensorScatter")
    if last is None or queries is None or k_cache is None or v_cache is None or not _is_limit(mask):
        return None
    keys, values = _turned(k_cache.inputs[1]), _heads_last(v_cache.inputs[1])
    fresh = all(_is_float_input(cache.inputs[0]) for cache in (k_cache, v_cache))
    if keys is None or values is None or keys[1] != queries[1] or not fresh:
        return None
    h, width = (dims(q) or (None,) * 4)[1::2]
    g = (dims(k_cache.inputs[0]) or (None,) * 2)[1]
    if not (isinstance(h, int) and isinstance(g, int) and isinstance(width, int)) or width % ROTARY_STEP:
        return None
    scale = attention.attributes.get_float("scale", 0.0)
    return Found(last, (queries[0], keys[0], values), (k_cache, v_cache), queries[1], (h, g), scale)


def _turns_by_position(tables: tuple[ir.Value, ir.Value]) -> bool:
    """Whether angles come from the slot alone: of other inputs nothing but the shape is asked."""
    seen, asked = set(tables), list(tables)
    while asked:
        node = asked.pop().producer()
        if node is None or node.op_type == "Shape":
            continue
        inputs = [value for value in node.inputs if value is not None]
        if any(value.is_graph_input() and value.name != "write_index" for value in inputs):
            return False
        asked += [value for value in inputs if value not in seen]
        seen |= set(inputs)
    return True


def _is_float_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input() and value.dtype == ir.DataType.FLOAT


def _flattened(value: ir.Value) -> ir.Node | None:
    """(b, h, s, d) -> the node that gives (b, s, h * d) of it, when nobody else reads it."""
    node = None
    for op_type in ("Transpose", "Reshape"):
        users = [use.node for use in value.uses()]
        if len(users) != 1 or users[0].op_type != op_type:
            return None
        node = users[0]
        if op_type == "Transpose" and node.attributes.get_ints("perm", ()) != HEADS_FIRST:
            return None
        value = node.outputs[0]
    return node if len(dims(value)) == 3 else None


def _turned(value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Value, ir.Value]] | None:
    """What a rotary embedding turns (b, s, h, d), and its tables."""
    rotary = made_by(value, "RotaryEmbedding")
    if rotary is None or len(rotary.inputs) != 3 or any(item.as_int() for item in rotary.attributes.values()):
        return None
    x, cosines, sines = rotary.inputs
    heads = _heads_last(x)
    return None if heads is None or cosines is None or sines is None else (heads, (cosines, sines))


def _heads_last(value: ir.Value | None) -> ir.Value | None:
    node = made_by(value, "Transpose")
    return None if node is None or node.attributes.get_ints("perm", ()) != HEADS_FIRST else node.inputs[0]


def _is_limit(mask: ir.Value | None) -> bool:
    """slot <= attention_limit, and nothing else."""
    compared = made_by(mask, "LessOrEqual")
    slots = made_by(compared.inputs[0], "Range") if compared else None
    limits = made_by(compared.inputs[1], "Unsqueeze") if compared else None
    limit = limits.inputs[0] if limits else None
    return slots is not None and limit is not None and limit.name == "attention_limit"


def _write(writer: Writer, inputs: dict[str | None, ir.Value], found: Found, tables: tuple[ir.Value, ir.Value]) -> None:
    scale: dict[str, Any] = {"scale": found.scale} if found.scale else {}
    keys, values = found.caches
    writer.place = found.last
    given = [*_pieces(writer, found), keys.inputs[0], values.inputs[0], *_lengths(writer, inputs), *tables]
    attended, *present = writer.make_many(
        "GroupQueryAttention",
        [*given, *_masks(writer, inputs)],
        3,
        domain=CONTRIB,
        num_heads=found.heads[0],
        kv_num_heads=found.heads[1],
        do_rotary=1,
        causal=0,
        **scale,
    )
    writer.replace(found.last, attended)
    for cache, value in zip(found.caches, present, strict=True):
        writer.replace(cache, value)


def _pieces(writer: Writer, found: Found) -> list[ir.Value | None]:
    """Queries, keys and values (b, s, heads * d): one product's whole, if they are its parts in this order."""
    flat: list[ir.Value | None] = []
    for part in found.parts:
        shaped = made_by(part, "Reshape")
        before = shaped.inputs[0] if shaped is not None else None
        if len(dims(before)) != 3:  # normed a head at a time
            before = writer.make("Reshape", part, writer.constant([0, 0, -1]))
        flat.append(before)
    split = made_by(flat[0], "Split")
    alone = all(value is not None and len(value.uses()) == 1 for value in flat)
    return [split.inputs[0], None, None] if split is not None and list(split.outputs) == flat and alone else flat


def _lengths(writer: Writer, inputs: dict[str | None, ir.Value]) -> list[ir.Value]:
    """seqlens_k (b): the last slot that a row fills; total_sequence_length: the tokens of the longest row."""
    ends = writer.make("Add", inputs["write_index"], new_tokens(writer, inputs))
    lasts = writer.make("Sub", ends, writer.constant([1]))
    longest = writer.make("ReduceMax", ends, keepdims=1)
    return [writer.make("Cast", value, to=ir.DataType.INT32) for value in (lasts, longest)]


def _masks(writer: Writer, inputs: dict[str | None, ir.Value]) -> list[ir.Value]:
    """position_ids (b, s) and attention_bias (b, 1, s, tokens of the longest row)."""
    zero, one, first = writer.constant(0), writer.constant(1), writer.constant([0])
    s = new_tokens(writer, inputs)
    steps = writer.make("Range", zero, writer.make("Squeeze", s, first), one)
    positions = writer.make("Add", writer.make("Unsqueeze", inputs["write_index"], writer.constant([1])), steps)
    longest = writer.make("ReduceMax", writer.make("Add", inputs["write_index"], s), keepdims=1)
    tokens = writer.make("Range", zero, writer.make("Squeeze", longest, first), one)
    limits = writer.make("Unsqueeze", inputs["attention_limit"], writer.constant([1, 3]))
    seen = writer.make("LessOrEqual", tokens, limits)
    shown, hidden = (writer.constant(number, np.float32) for number in (0, -np.inf))
    return [positions, writer.make("Where", seen, shown, hidden)]


def _tables(model: ir.Model, writer: Writer, pair: tuple[ir.Value, ir.Value], slots: int) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines (slots, d / 2) of all positions, as ONNX Runtime computes them from the graph's own nodes."""
    import onnxruntime

    part = ir.convenience.extract(model.graph, list(model.graph.inputs), pair)
    for value in [value for value in part.inputs if not value.uses()]:
        part.inputs.remove(value)
    alone = ir.to_proto(ir.Model(part, ir_version=model.ir_version)).SerializeToString()
    session = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])
    zeros = {value.name: np.zeros([1, slots][: len(value.shape)], np.int64) for value in session.get_inputs()}
    cosines, sines = (np.asarray(table)[0] for table in session.run(None, zeros))
    name = pair[0].name
    return writer.constant(cosines, name=f"{name}/cosines"), writer.constant(sines, name=f"{name}/sines")
