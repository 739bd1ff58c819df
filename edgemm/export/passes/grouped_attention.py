"""Rotary embedding, cache and attention of a layer as ONNX Runtime's one operator, GroupQueryAttention.

    q = RotaryEmbedding(heads(x)); past <- k, v; Attention(q, past)   ->   GroupQueryAttention(x..., past, tables, bias)

Where queries, keys and values are parts of one product (fused_products.py) it takes them in one piece.  It looks no
further than the last token, where Attention scores every slot of the cache.  What a token may see stays
`attention_limit`'s to say: it is added as a bias, the operator's own causal mask is off, so the tokens of a picture see
one another.  Rotary angles become two tables, as long as the longest context.
The operator takes several tokens a row for several rows at once only where nothing was read before.
Axes: b batch, s new tokens, T cache slots, h/g query and K/V heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.export.passes.rewriting import CONTRIB, Shape, attribute, import_contrib, replace_nodes
from edgemm.export.products import Writer

__all__ = ["grouped_attention"]

HEADS_FIRST = [0, 2, 1, 3]  # (b, s, h, d) -> (b, h, s, d), and back
ROTARY_STEP = 16  # the operator turns head widths that are multiples of it


@dataclass(frozen=True)
class Found:
    """One layer's attention; q, k and v (b, s, heads, d) before they are turned."""

    last: NodeProto  # gives (b, s, h * d)
    parts: tuple[str, str, str]
    caches: tuple[NodeProto, NodeProto]  # the TensorScatter of keys, and of values
    tables: tuple[str, str]  # cosines and sines of the new tokens
    heads: tuple[int, int]
    scale: float


def grouped_attention(model: ModelProto, shapes: Mapping[str, Shape], slots: int) -> bool:
    """In `model` itself, for contexts of at most `slots`; answers whether it found any.

    `shapes` are those of the reference graph, whose values kept their names: nothing is inferred through products that
    are quantized already.
    """
    graph = _Graph(model, shapes)
    matches = [found for node in model.graph.node if node.op_type == "Attention" and (found := graph.match(node))]
    matches = [found for found in matches if graph.turns_by_position(found.tables)]
    if not matches:
        return False
    lasts = {found.last.output[0]: found for found in matches}
    tables = {pair: _tables(model, graph, pair, slots) for pair in {found.tables for found in matches}}
    writer = Writer(model)
    for node in model.graph.node:
        found = lasts.get(node.output[0])
        if found is None:
            writer.nodes.append(node)
        else:
            _write(writer, graph, found, tables[found.tables])
    import_contrib(model)
    replaced = {name for found in matches for cache in found.caches for name in cache.output}
    replace_nodes(model, [n for n in writer.nodes if n.op_type != "TensorScatter" or not replaced & set(n.output)])
    return True


class _Graph:
    """Who makes and who reads what."""

    def __init__(self, model: ModelProto, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self.makers = {output: node for node in model.graph.node for output in node.output}
        self.inputs = {value.name for value in model.graph.input}
        self.floats = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def made_by(self, name: str, op_type: str) -> NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def match(self, attention: NodeProto) -> Found | None:
        if len(attention.input) != 4 or any(a.name != "scale" for a in attention.attribute):
            return None
        last = self._flattened(attention.output[0])
        queries = self._turned(attention.input[0])
        caches = [self.made_by(name, "TensorScatter") for name in attention.input[1:3]]
        if last is None or queries is None or None in caches or not self._is_limit(attention.input[3]):
            return None
        k_cache, v_cache = (node for node in caches if node is not None)
        keys, values = self._turned(k_cache.input[1]), self._heads_last(v_cache.input[1])
        fresh = {cache.input[0] for cache in (k_cache, v_cache)} <= self.floats
        if keys is None or values is None or keys[1] != queries[1] or not fresh:
            return None
        h, width = (self.shapes.get(attention.input[0], (None,) * 4)[axis] for axis in (1, 3))
        g = self.shapes.get(k_cache.input[0], (None,) * 4)[1]
        if not (isinstance(h, int) and isinstance(g, int) and isinstance(width, int)) or width % ROTARY_STEP:
            return None
        scale = attribute(attention, "scale", 0.0)
        return Found(last, (queries[0], keys[0], values), (k_cache, v_cache), queries[1], (h, g), scale)

    def turns_by_position(self, tables: tuple[str, str]) -> bool:
        """Whether angles come from the slot alone: of other inputs nothing but the shape is asked."""
        seen, asked = set(tables), list(tables)
        while asked:
            node = self.makers.get(asked.pop())
            if node is None or node.op_type == "Shape":
                continue
            if (set(node.input) & self.inputs) - {"write_index"}:
                return False
            asked += [name for name in node.input if name not in seen]
            seen |= set(node.input)
        return True

    def _flattened(self, name: str) -> NodeProto | None:
        """(b, h, s, d) -> the node that gives (b, s, h * d) of it, when nobody else reads it."""
        for op_type in ("Transpose", "Reshape"):
            users = self.users.get(name, [])
            if len(users) != 1 or users[0].op_type != op_type:
                return None
            if op_type == "Transpose" and attribute(users[0], "perm", []) != HEADS_FIRST:
                return None
            name = users[0].output[0]
        return self.makers[name] if len(self.shapes.get(name, ())) == 3 else None

    def _turned(self, name: str) -> tuple[str, tuple[str, str]] | None:
        """What a rotary embedding turns (b, s, h, d), and its tables."""
        rotary = self.made_by(name, "RotaryEmbedding")
        if rotary is None or len(rotary.input) != 3 or any(a.i for a in rotary.attribute):
            return None
        heads = self._heads_last(rotary.input[0])
        return None if heads is None else (heads, (rotary.input[1], rotary.input[2]))

    def _heads_last(self, name: str) -> str | None:
        node = self.made_by(name, "Transpose")
        return None if node is None or attribute(node, "perm", []) != HEADS_FIRST else node.input[0]

    def _is_limit(self, mask: str) -> bool:
        """slot <= attention_limit, and nothing else."""
        compared = self.made_by(mask, "LessOrEqual")
        limit = compared and self.made_by(compared.input[1], "Unsqueeze")
        slots = compared and self.made_by(compared.input[0], "Range")
        return bool(limit and slots and limit.input[0] == "attention_limit")


def _write(writer: Writer, graph: _Graph, found: Found, tables: tuple[str, str]) -> None:
    scales: dict[str, Any] = {"scale": found.scale} if found.scale else {}
    keys, values = found.caches
    node = helper.make_node(
        "GroupQueryAttention",
        [*_pieces(writer, graph, found), keys.input[0], values.input[0], *_lengths(writer), *tables, *_masks(writer)],
        [found.last.output[0], keys.output[0], values.output[0]],
        name=found.last.output[0],
        domain=CONTRIB,
        num_heads=found.heads[0],
        kv_num_heads=found.heads[1],
        do_rotary=1,
        causal=0,
        **scales,
    )
    writer.nodes.append(node)


def _pieces(writer: Writer, graph: _Graph, found: Found) -> list[str]:
    """Queries, keys and values (b, s, heads * d): one product's whole, if they are its parts in this order."""
    flat = []
    for part in found.parts:
        shaped = graph.made_by(part, "Reshape")
        before = shaped.input[0] if shaped is not None else ""
        if len(graph.shapes.get(before, ())) == 3:
            flat.append(before)
        else:  # normed a head at a time
            flat += writer.add("Reshape", part, writer.constant("heads.flat", np.array([0, 0, -1], np.int64)))
    split = graph.made_by(flat[0], "Split")
    if split is not None and list(split.output) == flat and all(len(graph.users[name]) == 1 for name in flat):
        return [split.input[0], "", ""]
    return flat


def _lengths(writer: Writer) -> list[str]:
    """seqlens_k (b): the last slot that a row fills; total_sequence_length: the tokens of the longest row."""
    s, one = _new_tokens(writer), writer.constant("lengths.one", np.array([1], np.int64))
    (ends,) = writer.add("Add", "write_index", s)
    (lasts,) = writer.add("Sub", ends, one)
    (longest,) = writer.add("ReduceMax", ends, keepdims=1)
    return [writer.add("Cast", name, to=TensorProto.INT32)[0] for name in (lasts, longest)]


def _masks(writer: Writer) -> list[str]:
    """position_ids (b, s) and attention_bias (b, 1, s, tokens of the longest row)."""
    zero, one = (writer.constant(f"lengths.{name}", np.array(n, np.int64)) for n, name in ((0, "start"), (1, "step")))
    nothing, behind, around = (
        writer.constant(f"lengths.axes_{name}", np.array(axes, np.int64))
        for name, axes in (("first", [0]), ("last", [1]), ("around", [1, 3]))
    )
    s = _new_tokens(writer)
    (count,) = writer.add("Squeeze", s, nothing)
    (steps,) = writer.add("Range", zero, count, one)
    (starts,) = writer.add("Unsqueeze", "write_index", behind)
    (positions,) = writer.add("Add", starts, steps)
    (longest,) = writer.add("ReduceMax", *writer.add("Add", "write_index", s), keepdims=1)
    (tokens,) = writer.add("Range", zero, *writer.add("Squeeze", longest, nothing), one)
    (limits,) = writer.add("Unsqueeze", "attention_limit", around)
    (seen,) = writer.add("LessOrEqual", tokens, limits)
    shown, hidden = (
        writer.constant(f"bias.{name}", np.array(n, np.float32)) for n, name in ((0, "shown"), (-np.inf, "hidden"))
    )
    return [positions, *writer.add("Where", seen, shown, hidden)]


def _new_tokens(writer: Writer) -> str:
    return writer.add("Shape", "input_ids", start=1, end=2)[0]


def _tables(model: ModelProto, graph: _Graph, pair: tuple[str, str], slots: int) -> tuple[str, str]:
    """Cosines and sines (slots, d / 2) of all positions, as ONNX Runtime computes them from the graph's own nodes."""
    import onnxruntime

    wanted, nodes = set(pair), []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.append(node)
    part = helper.make_graph(
        nodes[::-1],
        "tables",
        [value for value in model.graph.input if value.name in wanted],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in pair],
        [tensor for tensor in model.graph.initializer if tensor.name in wanted],
    )
    alone = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    zeros = {value.name: np.zeros([1, slots][: len(value.shape)], np.int64) for value in session.get_inputs()}
    names = []
    for name, table in zip(("cosines", "sines"), session.run(list(pair), zeros), strict=True):
        names.append(f"{pair[0]}/{name}")
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(table)[0]), names[-1]))
    return names[0], names[1]
