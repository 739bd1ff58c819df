"""Newer operators in primitives of opset 21, each function one operator, in the form that our graphs have:

    attention_primitive    Attention (opset 23)         two products and a softmax, arXiv:2305.13245
    rotary_primitive       RotaryEmbedding (opset 23)   one half of a head turned against the other, arXiv:2104.09864
    scatter_primitive      TensorScatter (opset 24)     ScatterND, its index made once for all layers
    rms_norm_primitive     RMSNormalization (opset 23)  x / sqrt(mean(x x) + epsilon) * weight, arXiv:1910.07467
    group_norm_primitive   GroupNormalization (21)      reshapes, means and products, arXiv:1803.08494
    gelu_primitive         Gelu (opset 20)              products with tanh or erf, arXiv:1606.08415
    clip_primitive         Clip of whole numbers        Max and Min: TensorRT 10's parser documents it for floats only
    mod_primitive          Mod of whole numbers         what is left of a division: none documents it for TensorRT 10.3
    cumsum_primitive       CumSum of whole numbers      a product with a triangle of ones, exact up to 2^24
    fp4_decoded            FP4                          the numbers it means, for runtimes without a kernel: to compare

Another form is refused by the node's name (ValueError).
Axes: b batch, h query heads, g key/value heads, r = h / g, s queries, T keys, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.export.graph_file import save_graph
from edgemm.export.passes.rewriting import Writer, dims, drop_unread, expand_nodes, nodes_of, stored

__all__ = [
    "attention_primitive",
    "clip_primitive",
    "cumsum_primitive",
    "decoded_copy",
    "fp4_decoded",
    "gelu_primitive",
    "group_norm_primitive",
    "mod_primitive",
    "rms_norm_primitive",
    "rotary_primitive",
    "scatter_primitive",
]

HIDDEN = -3e4  # its exponential is 0 in any precision, and float16 holds it; unlike -inf it cannot become NaN
CUBIC = 0.044715  # of Gelu with tanh


def attention_primitive(model: ir.Model) -> bool:
    """Nothing is repeated for grouped heads: those that share a key/value head are folded into the query axis, one
    product a group.  The mask becomes a bias, once for all layers."""
    return expand_nodes(model, "Attention", _attention)


def rotary_primitive(model: ir.Model) -> bool:
    """x (b, h, s, d), tables (b, s, d/2), whole heads, halves not interleaved."""
    return expand_nodes(model, "RotaryEmbedding", _rotary)


def scatter_primitive(model: ir.Model) -> bool:
    """The new keys and values at their slots: the cache (b, g, T, d) goes in, comes out, and keeps its size."""
    return expand_nodes(model, "TensorScatter", lambda writer, node: _scatter(writer, node, model.graph.inputs))


def rms_norm_primitive(model: ir.Model) -> bool:
    """The statistics are taken in float32, by a Cast that is seen, as the operator's own stash_type asks for."""
    return expand_nodes(model, "RMSNormalization", _rms_norm)


def group_norm_primitive(model: ir.Model) -> bool:
    """For parsers that do not know it; the statistics are taken in float32, as the operator's stash_type asks for."""
    return expand_nodes(model, "GroupNormalization", _group_norm)


def gelu_primitive(model: ir.Model) -> bool:
    return expand_nodes(model, "Gelu", _gelu)


def clip_primitive(model: ir.Model) -> bool:
    whole = (ir.DataType.INT64, ir.DataType.INT32)
    return expand_nodes(model, "Clip", _clip, lambda node: _given(node)[0].dtype in whole)


def mod_primitive(model: ir.Model) -> bool:
    return expand_nodes(model, "Mod", _mod)


def cumsum_primitive(model: ir.Model) -> bool:
    return expand_nodes(model, "CumSum", _cumsum)


def _given(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _size(value: ir.Value, axis: int, what: str) -> int:
    """The size of an axis that has to be known when the graph is written."""
    shape = dims(value)
    found = shape[axis] if -len(shape) <= axis < len(shape) else None
    if not isinstance(found, int):
        raise ValueError(f"{what} of {value.name!r} has shape {shape}, expected a number at axis {axis}")
    return found


def _mod(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    """a - a / b * b; Div cuts towards zero, Mod gives what has the divisor's sign."""
    a, b = _given(node)
    by = stored(b)
    if by is None or by.size != 1 or by.item() <= 0 or a.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        raise ValueError(f"{node.name}: Mod of other than whole numbers by a positive constant")
    left = w.make("Sub", a, w.make("Mul", w.make("Div", a, b), b))
    return (w.make("Where", w.make("Less", left, w.like(0, a)), w.make("Add", left, b), left),)


def _cumsum(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    """x (b, s) along s, as x times (s, s) that is one where a row is not behind its column."""
    x, axis = _given(node)
    along = stored(axis)
    plain = not node.attributes.get_int("exclusive", 0) and not node.attributes.get_int("reverse", 0)
    if along is None or len(dims(x)) != 2 or along.item() not in (1, -1) or not plain:
        raise ValueError(f"{node.name}: CumSum of other than rows (b, s) along s")
    assert x.dtype is not None
    count = w.make("Gather", w.make("Shape", x), w.constant(1))
    places = w.make("Range", w.constant(0), count, w.constant(1))
    sees = w.make("LessOrEqual", w.make("Unsqueeze", places, w.constant([1])), places)
    ones = w.make("Cast", sees, to=ir.DataType.FLOAT)
    return (w.make("Cast", w.make("MatMul", w.make("Cast", x, to=ir.DataType.FLOAT), ones), to=x.dtype),)


def _attention(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    _check_attention(node)
    queries, keys, values, *rest = _given(node)
    heads, width = _size(queries, 1, "Attention"), _size(queries, 3, "Attention")
    groups, value_width = _size(keys, 1, "Attention"), _size(values, 3, "Attention")
    scale = node.attributes.get_float("scale", width**-0.5)
    folded = w.make("Reshape", queries, w.constant([0, groups, -1, width]))  # (b, g, r*s, d)
    scaled = w.make("Mul", folded, w.like(scale, queries))
    scores = w.make("MatMul", scaled, w.make("Transpose", keys, perm=[0, 1, 3, 2]))  # (b, g, r*s, T)
    if rest:  # (b, 1, s, T) bool -> (b, 1, r*s, T), 0 where a key is seen
        bias = w.make("Where", rest[0], w.like(0.0, queries), w.like(HIDDEN, queries))
        repeats = heads // groups
        scores = w.make("Add", scores, bias if repeats == 1 else w.make("Concat", *[bias] * repeats, axis=2))
    attended = w.make("MatMul", w.make("Softmax", scores, axis=-1), values)  # (b, g, r*s, d)
    return (w.make("Reshape", attended, w.constant([0, heads, -1, value_width])),)


def _check_attention(node: ir.Node) -> None:
    """Four axes, a boolean mask or none, no cache inside, no soft cap."""
    inputs, has = _given(node), node.attributes
    plain = not (has.get_int("is_causal", 0) or has.get_float("softcap", 0) or has.get_int("qk_matmul_output_mode", 0))
    mask = inputs[3] if len(inputs) > 3 else None
    masked = mask is None or (mask.dtype == ir.DataType.BOOL and len(dims(mask)) == 4 and dims(mask)[1] == 1)
    alone = [output.name for output in node.outputs if output.name]
    if not (plain and masked and len(inputs) == len(node.inputs) <= 4 and len(alone) == 1):
        raise ValueError(
            f"{node.name}: Attention with a cache, a soft cap, causal masking or a mask that is not boolean"
        )


def _rotary(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    x, *tables = _given(node)
    other_form = node.attributes.get_int("interleaved", 0) or node.attributes.get_int("rotary_embedding_dim", 0)
    if other_form or len(tables) > 2 or len(dims(x)) != 4:
        raise ValueError(f"{node.name}: RotaryEmbedding with interleaved halves, part of a head or position ids")
    half = _size(x, -1, "RotaryEmbedding") // 2
    cos, sin = (w.make("Unsqueeze", table, w.constant([1])) for table in tables)  # (b, 1, s, d/2)
    first, second = w.make_many("Split", (x, w.constant([half, half])), 2, axis=-1)
    turned = w.make("Sub", w.make("Mul", first, cos), w.make("Mul", second, sin))
    other = w.make("Add", w.make("Mul", second, cos), w.make("Mul", first, sin))
    return (w.make("Concat", turned, other, axis=-1),)


def _scatter(w: Writer, node: ir.Node, inputs: Sequence[ir.Value]) -> tuple[ir.Value]:
    has = node.attributes
    if len(node.inputs) != 3 or has.get_string("mode", "linear") != "linear" or has.get_int("axis", -2) not in (2, -2):
        raise ValueError(f"{node.name}: TensorScatter without a write index, in a circle or not along the slots")
    cache, update, write_index = _given(node)
    named, axis = _where_named(update, 2, inputs)
    new = w.make("Shape", named, start=axis, end=axis + 1)
    return (w.make("ScatterND", cache, _index(w, write_index, _size(cache, 1, "TensorScatter"), new), update),)


def _where_named(value: ir.Value, axis: int, inputs: Sequence[ir.Value]) -> tuple[ir.Value, int]:
    """An input of the graph with an axis of the same name: every layer then asks the same question."""
    name = dims(value)[axis]
    for given in inputs:
        if isinstance(name, str) and name in dims(given):
            return given, dims(given).index(name)
    return value, axis


def _index(w: Writer, write_index: ir.Value, groups: int, new: ir.Value) -> ir.Value:
    """(b, g, s, 3): row, group and slot of every new key."""
    zero, one = w.constant(0), w.constant(1)
    batch = w.make("Shape", write_index, start=0, end=1)
    ends = w.constant([1])
    shape = w.make("Concat", batch, w.constant([groups]), new, ends, axis=0)
    rows = w.make("Range", zero, w.make("Squeeze", batch), one)
    rows = w.make("Reshape", rows, w.constant([-1, 1, 1, 1]))
    group = w.constant(np.arange(groups).reshape(1, groups, 1, 1))
    steps = w.make("Range", zero, w.make("Squeeze", new), one)
    start = w.make("Unsqueeze", write_index, ends)
    slots = w.make("Unsqueeze", w.make("Add", start, steps), w.constant([1, 3]))  # (b, 1, s, 1)
    return w.make("Concat", *(w.make("Expand", part, shape) for part in (rows, group, slots)), axis=3)


def _rms_norm(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    x, weight = _given(node)
    rank = len(dims(x))
    first = node.attributes.get_int("axis", -1) % rank
    wide = x if x.dtype == ir.DataType.FLOAT else w.make("Cast", x, to=ir.DataType.FLOAT)
    mean = w.make("ReduceMean", w.make("Mul", wide, wide), w.constant(list(range(first, rank))), keepdims=1)
    epsilon = w.constant(node.attributes.get_float("epsilon", 1e-5), np.float32)
    normed = w.make("Div", wide, w.make("Sqrt", w.make("Add", mean, epsilon)))
    if x.dtype != ir.DataType.FLOAT:
        normed = w.make("Cast", normed, to=x.dtype)
    return (w.make("Mul", normed, weight),)


def _group_norm(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    x, scale, bias = _given(node)  # (b, c, ...), (c), (c)
    channels = _size(x, 1, "GroupNormalization")
    wide = x if x.dtype == ir.DataType.FLOAT else w.make("Cast", x, to=ir.DataType.FLOAT)
    groups = w.constant([0, node.attributes.get_int("num_groups", 1), -1])
    rows, last = w.make("Reshape", wide, groups), w.constant([2])  # (b, groups, numbers)
    # Row by row first: one sum of a million numbers is off by more than a flat map varies.
    of_rows = w.make("ReduceMean", wide, w.constant([-1]), keepdims=0)
    mean = w.make("ReduceMean", w.make("Reshape", of_rows, groups), last, keepdims=1)
    centred = w.make("Sub", rows, mean)
    variance = w.make("ReduceMean", w.make("Mul", centred, centred), last, keepdims=1)
    epsilon = w.constant(node.attributes.get_float("epsilon", 1e-5), np.float32)
    normed = w.make("Div", centred, w.make("Sqrt", w.make("Add", variance, epsilon)))
    if x.dtype != ir.DataType.FLOAT:
        normed = w.make("Cast", normed, to=x.dtype)
    back = w.make("Reshape", normed, w.make("Shape", x))
    over_places = w.constant([channels, *[1] * (len(dims(x)) - 2)])
    scale, bias = (w.make("Reshape", each, over_places) for each in (scale, bias))
    return (w.make("Add", w.make("Mul", back, scale), bias),)


def _gelu(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    (x,) = _given(node)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = w.make("Mul", w.make("Mul", x, x), x)
        inner = w.make("Add", x, w.make("Mul", cube, w.like(CUBIC, x)))
        bent = w.make("Tanh", w.make("Mul", inner, w.like(math.sqrt(2 / math.pi), x)))
    else:
        bent = w.make("Erf", w.make("Mul", x, w.like(math.sqrt(0.5), x)))
    half = w.make("Mul", x, w.like(0.5, x))
    return (w.make("Mul", half, w.make("Add", bent, w.like(1.0, x))),)


def _clip(w: Writer, node: ir.Node) -> tuple[ir.Value]:
    x, low, high = (*node.inputs, None, None)[:3]
    assert x is not None
    if low is not None:
        x = w.make("Max", x, low)
    if high is not None:
        x = w.make("Min", x, high)
    return (x,)


TRT = "trt"
BLOCK, LARGEST = 16, 6.0  # of E2M1
SCALE_LARGEST, SCALE_SMALLEST = 448.0, 2.0**-9  # of E4M3


def decoded_copy(graph: Path, folder: Path) -> tuple[Path, Path | None]:
    """The graph without FP4, and the file that its weights are in, below `folder`."""
    model, copy = ir.load(graph), folder / graph.name
    fp4_decoded(model)
    return copy, save_graph(model, copy)


def fp4_decoded(model: ir.Model) -> bool:
    """FP4 in operators that every runtime has: to compare with, never to use.

    w = DequantizeLinear(codes, DequantizeLinear(scales, whole))            ->  one constant, by the rules of ONNX
    DequantizeLinear(c, DequantizeLinear(s, whole)), c, s = TRT_FP4DynamicQuantize(x, whole)
                                                                            ->  x rounded in blocks of 16, in float32
    """
    writer, changed = Writer(model), False
    for node in nodes_of(model, "DequantizeLinear"):
        source = node.inputs[0]
        maker = source.producer() if source is not None else None
        writer.place = node
        if source is not None and source.is_initializer() and source.dtype == ir.DataType.FLOAT4E2M1:
            writer.replace(node, writer.constant(_values(node)))
        elif maker is not None and maker.domain == TRT and maker.outputs[0] is source:
            writer.replace(node, _rounded(writer, *maker.inputs))
        else:
            continue
        changed = True
    drop_unread(model)
    model.opset_imports.pop(TRT, None)
    return changed


def _values(node: ir.Node) -> np.ndarray:
    """What a DequantizeLinear makes of constants, or of what another makes of constants."""
    codes, scale = (_numbers(value) for value in node.inputs[:2])
    block = node.attributes.get_int("block_size", 0)
    spread = np.repeat(scale, block, axis=node.attributes.get_int("axis", 1)) if block else scale
    return (codes.astype(np.float32) * spread.astype(np.float32)).astype(scale.dtype)


def _numbers(value: ir.Value | None) -> np.ndarray:
    array = stored(value)
    if array is None:
        maker = value.producer() if value is not None else None
        assert maker is not None
        array = _values(maker)
    return array


def _rounded(w: Writer, x: ir.Value | None, whole: ir.Value | None) -> ir.Value:
    """x in float32.  Steps of E2M1 are 0.5 up to 2, 1 up to 4, 2 up to 6, ties go to the even."""

    def number(value: float) -> ir.Value:
        return w.constant(value, np.float32)

    blocks = w.make("Reshape", w.make("Cast", x, to=ir.DataType.FLOAT), w.constant([-1, BLOCK]))
    largest = w.make("ReduceMax", w.make("Abs", blocks), w.constant([-1]))
    scale = w.make("Div", w.make("Div", largest, number(LARGEST)), whole)
    scale = w.make("Clip", scale, number(SCALE_SMALLEST), number(SCALE_LARGEST))
    scale = w.make("Cast", w.make("Cast", scale, to=ir.DataType.FLOAT8E4M3FN), to=ir.DataType.FLOAT)
    each = w.make("Mul", scale, whole)
    ratio = w.make("Div", blocks, each)
    size = w.make("Min", w.make("Abs", ratio), number(LARGEST))
    coarse = w.make("Where", w.make("Less", size, number(4)), number(1), number(2))
    step = w.make("Where", w.make("Less", size, number(2)), number(0.5), coarse)
    nearest = w.make("Mul", w.make("Round", w.make("Div", size, step)), step)
    values = w.make("Mul", w.make("Mul", w.make("Sign", ratio), nearest), each)
    return w.make("Reshape", values, w.make("Shape", x))
