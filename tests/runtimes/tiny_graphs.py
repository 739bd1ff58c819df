"""The five components of a tiny model as real ONNX graphs, by hand: what an exporter would write.

Axes: b batch, s new tokens, T cache slots, m/n image tokens read/drawn, g/h heads, d head width, t prefix slots.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.runtimes.tiny_weights import TINY, Weights

OPSET = 24
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
Shape = tuple[int | str, ...]


class Graph:
    """Nodes in the order they are asked for; every call gives the name of what it makes."""

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[tuple[str, str, Shape]] = []
        self.outputs: list[tuple[str, str, Shape]] = []

    def input(self, name: str, dtype: str, *shape: int | str) -> str:
        self.inputs.append((name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: str, *shape: int | str) -> None:
        self.outputs.append((name, dtype, shape))
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def ints(self, *values: int) -> str:
        return self.array(f"ints_{'_'.join(map(str, values))}".replace("-", "m"), np.array(values, dtype=np.int64))

    def array(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str) -> str:
        assert self.weights is not None
        return self.array(f"weight.{name}", self.weights[name])

    def linear(self, x: str, name: str) -> str:
        return self.op("MatMul", x, self.weight(name))

    def split(self, x: str, heads: int, width: int) -> str:
        """(b, s, heads * d) -> (b, heads, s, d)"""
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, heads, width)), perm=[0, 2, 1, 3])

    def join(self, x: str, width: int) -> str:
        """(b, heads, s, d) -> (b, s, width)"""
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), self.ints(0, 0, width))

    def size(self, x: str, axis: int) -> str:
        return self.op("Squeeze", self.op("Shape", x, start=axis, end=axis + 1), self.ints(0))

    def range(self, size: str) -> str:
        zero, one = (self.array(f"scalar_{i}", np.array(i, dtype=np.int64)) for i in (0, 1))
        return self.op("Range", zero, size, one)

    def model(self) -> onnx.ModelProto:
        def infos(side):
            return [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name, dtype, shape in side]

        graph = helper.make_graph(
            self.nodes, "tiny", infos(self.inputs), infos(self.outputs), initializer=list(self.constants.values())
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def image_encoder(weights: Weights) -> Graph:
    g = Graph(weights)
    side, patch = TINY.read_size // TINY.read_patch, TINY.read_patch
    pixels = g.input("pixels", "float32", "b", 3, TINY.read_size, TINY.read_size)
    patches = g.op("Reshape", pixels, g.ints(0, 3, side, patch, side, patch))
    patches = g.op("Transpose", patches, perm=[0, 2, 4, 1, 3, 5])
    tokens = g.linear(g.op("Reshape", patches, g.ints(0, side * side, 3 * patch * patch)), "patch")
    g.output(tokens, "image_tokens", "float32", "b", TINY.image_tokens, TINY.width)
    return g


def transformer(weights: Weights) -> Graph:
    g = Graph(weights)
    ids = g.input("input_ids", "int64", "b", "s")
    image_tokens = g.input("image_tokens", "float32", "b", "m", TINY.width)
    rows = g.input("image_index", "int64", "b", "s")
    write_index = g.input("write_index", "int64", "b")
    limit = g.input("attention_limit", "int64", "b", "s")
    logits_index = g.input("logits_index", "int64", "b")
    cache_shape = ("b", TINY.kv_heads, "T", TINY.head_width)
    pasts = [
        tuple(g.input(f"past_{part}.{layer}", "float32", *cache_shape) for part in ("key", "value"))
        for layer in range(TINY.layers)
    ]
    pictured = g.op("GatherND", image_tokens, g.op("Unsqueeze", g.op("Max", rows, g.ints(0)), g.ints(-1)), batch_dims=1)
    is_picture = g.op("Unsqueeze", g.op("GreaterOrEqual", rows, g.ints(0)), g.ints(-1))
    x = g.op("Where", is_picture, pictured, g.op("Gather", g.weight("embed"), ids))
    first = g.op("Unsqueeze", write_index, g.ints(-1))
    positions = g.op("Add", first, g.range(g.size(ids, 1)))  # (b, s)
    half = TINY.head_width // 2
    angles = np.arange(TINY.positions)[:, None] / 10_000 ** (np.arange(half) / half)
    cos = g.array("cos", np.cos(angles).astype(np.float32))
    sin = g.array("sin", np.sin(angles).astype(np.float32))
    slots = g.range(g.size(pasts[0][0], 2))  # (T)
    mask = g.op("LessOrEqual", slots, g.op("Unsqueeze", limit, g.ints(-1)))  # (b, s, T)
    mask = g.op("Unsqueeze", mask, g.ints(1))
    for layer, (past_key, past_value) in enumerate(pasts):
        y = g.op("RMSNormalization", x, g.weight(f"norm.{layer}"), epsilon=1e-5)
        q = g.split(g.linear(y, f"q.{layer}"), TINY.heads, TINY.head_width)
        k = g.split(g.linear(y, f"k.{layer}"), TINY.kv_heads, TINY.head_width)
        v = g.split(g.linear(y, f"v.{layer}"), TINY.kv_heads, TINY.head_width)
        q, k = (g.op("RotaryEmbedding", part, cos, sin, positions) for part in (q, k))
        key = g.op("TensorScatter", past_key, k, write_index, axis=2)
        value = g.op("TensorScatter", past_value, v, write_index, axis=2)
        attended = g.op("Attention", q, key, value, mask)
        x = g.op("Add", x, g.linear(g.join(attended, TINY.heads * TINY.head_width), f"o.{layer}"))
        y = g.op("RMSNormalization", x, g.weight(f"ffn_norm.{layer}"), epsilon=1e-5)
        x = g.op("Add", x, g.linear(g.op("Tanh", g.linear(y, f"up.{layer}")), f"down.{layer}"))
        g.output(key, f"present_key.{layer}", "float32", *cache_shape)
        g.output(value, f"present_value.{layer}", "float32", *cache_shape)
    last = g.op("GatherND", x, g.op("Unsqueeze", logits_index, g.ints(-1)), batch_dims=1)  # (b, w)
    last = g.op("RMSNormalization", last, g.weight("final_norm"), epsilon=1e-5)
    logits = g.op("MatMul", last, g.op("Transpose", g.weight("embed"), perm=[1, 0]))
    g.output(logits, "logits", "float32", "b", TINY.vocab)
    return g


def conditioner(weights: Weights, skip: int) -> Graph:
    g = Graph(weights)
    raw = TINY.kv_heads * TINY.head_width
    cache_shape = ("b", TINY.kv_heads, "T", TINY.head_width)
    prefix_shape = ("b", TINY.draw_heads, "t", TINY.draw_head_width)
    pasts = {
        layer: tuple(g.input(f"past_{part}.{layer}", "float32", *cache_shape) for part in ("key", "value"))
        for layer in sorted(set(TINY.prefix_layers))
    }
    own = g.input("prompt_mask", "float32", "b", "T")
    length = g.input("prefix_length", "int64", "b")
    far = g.ints(1 << 40)

    def kept(x: str, axis: int) -> str:
        return g.op("Slice", x, g.ints(skip), far, g.ints(axis))

    flat = ""
    for index, layer in enumerate(TINY.prefix_layers):
        for part, past in zip(("key", "value"), pasts[layer]):
            flat = g.join(kept(past, 2), raw)  # (b, t, g * d)
            adapted = g.split(g.linear(flat, f"prefix_{part}.{index}"), TINY.draw_heads, TINY.draw_head_width)
            g.output(adapted, f"prefix_{part}.{index}", "float32", *prefix_shape)
    slots = kept(g.range(g.size(own, 1)), 0)
    g.output(g.op("Less", slots, g.op("Unsqueeze", length, g.ints(-1))), "prefix_mask", "bool", "b", "t")
    own = kept(own, 1)  # (b, t)
    one = g.array("one", np.array(1, dtype=np.float32))
    share = g.op("Div", own, g.op("Max", g.op("ReduceSum", own, g.ints(1), keepdims=1), one))
    pooled = g.op("Squeeze", g.op("MatMul", g.op("Unsqueeze", share, g.ints(1)), flat), g.ints(1))  # (b, g * d)
    g.output(g.linear(pooled, "prompt_vector"), "prompt_vector", "float32", "b", TINY.vector_width)
    layout = g.op("Reshape", g.linear(pooled, "layout"), g.ints(0, TINY.token_count, TINY.layout_width))
    g.output(layout, "layout", "float32", "b", TINY.token_count, TINY.layout_width)
    return g


def denoiser(weights: Weights) -> Graph:
    g = Graph(weights)
    prefix_shape = ("b", TINY.draw_heads, "t", TINY.draw_head_width)
    noisy = g.input("noisy_tokens", "float32", "b", TINY.token_count, TINY.token_width)
    time = g.input("time", "float32", "b")
    vector = g.input("prompt_vector", "float32", "b", TINY.vector_width)
    layout = g.input("layout", "float32", "b", TINY.token_count, TINY.layout_width)
    mask = g.input("prefix_mask", "bool", "b", "t")
    prefixes = [
        [g.input(f"prefix_{part}.{layer}", "float32", *prefix_shape) for part in ("key", "value")]
        for layer in range(TINY.draw_layers)
    ]
    x = g.op("Add", g.linear(noisy, "draw_in"), g.linear(layout, "layout_in"))
    timed = g.op("Mul", g.op("Reshape", time, g.ints(-1, 1, 1)), g.weight("time"))
    x = g.op("Add", g.op("Add", x, timed), g.op("Unsqueeze", g.linear(vector, "vector_in"), g.ints(1)))
    # (b, 1, 1, t + n): the prefix where its mask is, and every image token
    own = g.op(
        "Expand", g.array("true", np.array([[True]])), g.op("Shape", g.op("ReduceSum", noisy, g.ints(2), keepdims=0))
    )
    joint = g.op("Unsqueeze", g.op("Concat", mask, own, axis=1), g.ints(1, 2))
    joint = g.op("Expand", joint, g.ints(1, 1, TINY.token_count, 1))
    for layer, (key, value) in enumerate(prefixes):
        q, k, v = (
            g.split(g.linear(x, f"draw_{part}.{layer}"), TINY.draw_heads, TINY.draw_head_width) for part in "qkv"
        )
        k, v = g.op("Concat", key, k, axis=2), g.op("Concat", value, v, axis=2)
        attended = g.join(g.op("Attention", q, k, v, joint), TINY.draw_width)
        x = g.op("Add", x, g.op("Tanh", g.linear(attended, f"draw_o.{layer}")))
    g.output(g.linear(x, "draw_out"), "prediction", "float32", "b", TINY.token_count, TINY.token_width)
    return g


def image_decoder() -> Graph:
    """No weights: a component without a data file."""
    g = Graph()
    side, patch, size = TINY.draw_size // TINY.draw_patch, TINY.draw_patch, TINY.draw_size
    tokens = g.input("tokens", "float32", "b", TINY.token_count, TINY.token_width)
    pixels = g.op("Reshape", tokens, g.ints(0, side, side, 3, patch, patch))
    pixels = g.op("Reshape", g.op("Transpose", pixels, perm=[0, 3, 1, 4, 2, 5]), g.ints(0, 3, size, size))
    g.output(g.op("Sigmoid", pixels), "pixels", "float32", "b", 3, size, size)
    return g
