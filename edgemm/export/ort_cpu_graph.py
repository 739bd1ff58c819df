"""The last passes over a graph for ONNX Runtime's CPU provider: fewer, larger operators that say the same.

They come after the lowering, whatever the precision, so what they look for are the reference's own operators and
products that are quantized already.  Graphs that have none of it stay as they are.
Axes: n output channels, k input channels, g groups of k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgemm.export.lower_cpu import in_float
from edgemm.export.passes.decompositions import group_norm_primitive
from edgemm.export.passes.grouped_attention import grouped_attention
from edgemm.export.passes.rewriting import CONTRIB, Dims, Writer, dims, drop_unread, made_by, nodes_of, stored
from edgemm.export.passes.steady_rows import steady_rows

__all__ = ["added_norm", "for_ort_cpu", "fused_integers", "fused_products", "modulated_norm"]

SMALL_BYTES = 64 << 20  # of weights: rows of such graphs are run one by one (ort_backend.py)


def for_ort_cpu(lowered: ir.Model, slots: int) -> None:
    """In `lowered` itself; `slots` is the longest context, in tokens."""
    fused_products(lowered)
    fused_integers(lowered)
    # The library's own takes the variance as the mean of squares less the square of the mean: NaN for a flat picture.
    group_norm_primitive(lowered)
    if nodes_of(lowered, "TensorScatter"):
        grouped_attention(lowered, slots)
        added_norm(lowered)
        if candidates := next((value for value in lowered.graph.inputs if value.name == "draft_index"), None):
            steady_rows(lowered)
            left_out(lowered, candidates)
    weights = (value.const_value for value in lowered.graph.initializers.values())
    if sum(tensor.nbytes for tensor in weights if tensor is not None) <= SMALL_BYTES:
        modulated_norm(lowered)


def left_out(model: ir.Model, candidates: ir.Value) -> None:
    """draft_index (b, k) need not be given: of a program that knows nothing of candidates there are none.

    An input with a value of its own, (1, 0), which is made as tall as the batch.  In `model` itself.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    writer = Writer(model)
    readers = {use.node for use in candidates.uses()}
    writer.place = next(node for node in model.graph if node in readers)
    rows = writer.make("Shape", inputs["logits_index"], start=0, end=1)
    tall = writer.make("Expand", candidates, writer.make("Concat", rows, writer.constant([1]), axis=0))
    for use in list(candidates.uses()):
        if use.node is not tall.producer():
            use.node.replace_input_with(use.idx, tall)
    candidates.const_value = ir.Tensor(np.zeros((1, 0), np.int64), name=candidates.name)
    model.graph.register_initializer(candidates)


def added_norm(model: ir.Model) -> bool:
    """A residual sum and the norm that reads it as one operator, which adds and squares in one walk over a row.

        RMSNormalization(Add(x, y), weight)   ->   SkipSimplifiedLayerNormalization(x, y, weight), which gives the sum
                                                   too

    In `model` itself; answers whether there was one.
    """
    writer, changed = Writer(model), False
    for add in nodes_of(model, "Add"):
        norm = next((node for node, place in add.outputs[0].uses() if place == 0 and _normalizes(node)), None)
        if norm is None or not _alike(add):
            continue
        writer.place = add  # all that the norm reads is there by then
        normed, *unused, summed = writer.make_many(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, norm.inputs[1]],
            4,
            domain=CONTRIB,
            epsilon=norm.attributes.get_float("epsilon", 1e-5),
        )
        for value in unused:
            value.name = ""  # nothing is computed for an output without a name
        writer.replace(norm, normed)
        writer.replace(add, summed)
        changed = True
    if changed:
        model.opset_imports.setdefault(CONTRIB, 1)
        drop_unread(model)
    return changed


def _normalizes(node: ir.Node) -> bool:
    return node.op_type == "RMSNormalization" and node.attributes.get_int("axis", -1) == -1


def modulated_norm(model: ir.Model) -> bool:
    """An adaptive layer norm (arXiv:2212.09748) as one operator.

        Add(Mul(LayerNormalization(x, 1), scale), shift)   ->   LayerNormalization(x, scale, shift)

    For a scale and a shift (b, 1, w) of all rows of a picture (b, n, w).  Of one picture that takes 0.7 of the time, of
    two in a batch 1.8 of it, where the kernel looks for each row's own.  In `model` itself; answers whether there was
    one.
    """
    writer, changed = Writer(model), False
    for norm in nodes_of(model, "LayerNormalization"):
        scaled = _only_user(norm, "Mul")
        shifted = _only_user(scaled, "Add")
        if scaled is None or shifted is None or not _plain(norm):
            continue
        scale, shift = _other(scaled, norm), _other(shifted, scaled)
        if not all(_one_a_picture(value, dims(norm.inputs[0])) for value in (scale, shift)):
            continue
        writer.place = shifted
        epsilon = norm.attributes.get_float("epsilon", 1e-5)
        writer.replace(shifted, writer.make("LayerNormalization", norm.inputs[0], scale, shift, epsilon=epsilon))
        changed = True
    if changed:
        drop_unread(model)
    return changed


def _plain(norm: ir.Node) -> bool:
    """Over the last axis, with weights of one and no bias."""
    weight, last = stored(norm.inputs[1]), norm.attributes.get_int("axis", -1) in (-1, 2)
    return last and len(norm.inputs) == 2 and weight is not None and bool((weight == 1).all())


def _one_a_picture(value: ir.Value | None, rows: Dims) -> bool:
    """Its own batch is that of the rows, whatever name tracing had for it."""
    found = dims(value)
    return len(rows) == len(found) == 3 and found[1:] == (1, rows[2]) and (rows[0] != 1 or found[0] == 1)


def _alike(add: ir.Node) -> bool:
    """Nothing is repeated along an axis."""
    one, other = (dims(value) for value in add.inputs)
    return len(one) == 3 and one == other


PARTS = ("codes", "scales", "zeros")  # after x
SETTINGS = ("K", "bits", "block_size", "accuracy_level")


def fused_products(model: ir.Model) -> bool:
    """Block-quantized products of one input as one product: queries, keys and values; gate and up.

        MatMulNBits(x, W1), MatMulNBits(x, W2), ...  ->  Split(MatMulNBits(x, [W1; W2; ...]))

    The input is rounded once and threads meet once, and every number comes from the same arithmetic as before: bit for
    bit.  Products that differ in bits, blocks or what is added to them stay apart.  Changes `model` itself.
    """
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in nodes_of(model, "MatMulNBits", CONTRIB):
        if _own(node):
            widened = [made_by(value, "Cast") is not None for value in node.inputs[1:]]
            groups.setdefault((node.inputs[0], *widened, *_settings(node).values()), []).append(node)
    together = [nodes for nodes in groups.values() if len(nodes) > 1]
    writer = Writer(model)
    for nodes in together:
        writer.place = nodes[0]
        sizes = [node.attributes.get_int("N", 0) for node in nodes]
        parts = [_joined(writer, nodes, place, sizes) for place in range(1, len(nodes[0].inputs))]
        whole = writer.make(
            "MatMulNBits", nodes[0].inputs[0], *parts, domain=CONTRIB, N=sum(sizes), **_settings(nodes[0])
        )
        for node, value in zip(
            nodes, writer.make_many("Split", (whole, writer.constant(sizes)), len(nodes), axis=-1), strict=True
        ):
            writer.replace(node, value)
    if together:
        drop_unread(model)
    return bool(together)


def _settings(node: ir.Node) -> dict[str, int]:
    return {name: node.attributes.get_int(name, 0) for name in SETTINGS}


def _own(node: ir.Node) -> bool:
    """Whether its weights are stored, and read by nobody else (the head's are the embedding's too)."""
    parts = [value for value in node.inputs[1:] if value is not None]
    alone = all(_numbers(value) is not None and len(value.uses()) == 1 for value in parts)
    return alone and len(parts) == len(node.inputs) - 1 <= len(PARTS)


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """Of a weight, also where a Cast widens it."""
    cast = made_by(value, "Cast")
    return stored(cast.inputs[0] if cast else value)


def _joined(writer: Writer, nodes: list[ir.Node], place: int, sizes: list[int]) -> ir.Value:
    """Rows of n follow one another, however flat they are stored: a channel's groups lie side by side, in whole
    bytes."""
    arrays = [array for node in nodes if (array := _numbers(node.inputs[place])) is not None]
    rows = np.concatenate([a if a.ndim > 1 else a.reshape(n, -1) for a, n in zip(arrays, sizes, strict=True)])
    name = f"{nodes[0].outputs[0].name}/fused_{PARTS[place - 1]}"
    value = writer.constant(rows if arrays[0].ndim > 1 else rows.reshape(-1), name=name)
    cast = made_by(nodes[0].inputs[place], "Cast")
    return writer.make("Cast", value, to=cast.attributes.get_int("to", 0)) if cast else value


def fused_integers(model: ir.Model) -> bool:
    """The same of integer products whose rows have scales of their own: every number as before, bit for bit.

    Mul(Mul(Cast(MatMulInteger(x, W1)), scales1), rows), ...  ->  Split(Mul(Mul(Cast(MatMulInteger(x, [W1 W2 ...])), ...
    """
    groups: dict[tuple[object, ...], list[_Integers]] = {}
    for node in nodes_of(model, "MatMulInteger"):
        if found := _integers_of(node):
            groups.setdefault((*node.inputs[:1], *node.inputs[2:], found.scale, found.rows, found.sizes), []).append(
                found
            )
    together = [found for found in groups.values() if len(found) > 1]
    writer = Writer(model)
    for found in together:
        writer.place = found[0].product
        _join(writer, found)
    if together:
        drop_unread(model)
    return bool(together)


@dataclass(frozen=True)
class _Integers:
    """One such product: y = codes @ weight * (scale * scales) * sizes."""

    product: ir.Node
    weight: np.ndarray  # (k, n) int8
    scale: ir.Value  # of the codes
    scales: np.ndarray  # (n)
    rows: ir.Value | None  # shape of one of two terms without n; None where there is one
    sizes: ir.Value  # of the rows
    last: ir.Node


def _integers_of(product: ir.Node) -> _Integers | None:
    cast = _only_user(product, "Cast")
    scaled = _only_user(cast, "Mul")
    terms = _only_user(scaled, "Reshape")
    whole = _only_user(_only_user(terms, "MatMul"), "Reshape") if terms else scaled
    last = _only_user(whole, "Mul")
    if cast is None or scaled is None or whole is None or last is None:
        return None
    both, sizes = _other(scaled, cast), _other(last, whole)
    shape = made_by(whole.inputs[1], "Concat") if terms else None
    by = made_by(both, "Mul")
    weight, scales = stored(product.inputs[1]), stored(by.inputs[1] if by else None)
    if by is None or by.inputs[0] is None or sizes is None or weight is None or scales is None or weight.ndim != 2:
        return None
    return _Integers(product, weight, by.inputs[0], scales, shape and shape.inputs[0], sizes, last)


def _only_user(node: ir.Node | None, op_type: str) -> ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()] if node is not None else []
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _other(node: ir.Node, made: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if value is not made.outputs[0]), None)


def _join(writer: Writer, found: list[_Integers]) -> None:
    first, name = found[0], f"{found[0].last.outputs[0].name}/fused"
    codes, zeros = first.product.inputs[0], first.product.inputs[2:]
    weight = writer.constant(np.concatenate([each.weight for each in found], 1), name=f"{name}_codes")
    scales = writer.constant(np.concatenate([each.scales for each in found]), name=f"{name}_scales")
    summed = writer.make("MatMulInteger", codes, weight, *zeros)
    widths = [each.weight.shape[1] for each in found]
    whole = writer.make("Mul", in_float(writer, summed, first.scale, scales, first.rows, sum(widths)), first.sizes)
    parts = writer.make_many("Split", (whole, writer.constant(widths)), len(found), axis=-1)
    for each, value in zip(found, parts, strict=True):
        writer.replace(each.last, value)
