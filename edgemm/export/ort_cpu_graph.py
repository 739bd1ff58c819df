"""The last passes over a graph for ONNX Runtime's CPU provider: fewer, larger operators that say the same.

They come after the lowering, whatever the precision, so what they look for are the reference's own operators and
products that are quantized already.  Graphs that have none of it stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.export.passes.decompositions import group_norm_primitive
from edgemm.export.passes.fused_products import fused_products
from edgemm.export.passes.grouped_attention import grouped_attention
from edgemm.export.passes.rewriting import CONTRIB, Writer, dims, drop_unread, nodes_of

__all__ = ["added_norm", "for_ort_cpu"]


def for_ort_cpu(lowered: ir.Model, slots: int) -> None:
    """In `lowered` itself; `slots` is the longest context, in tokens."""
    fused_products(lowered)
    # The library's own takes the variance as the mean of squares less the square of the mean: NaN for a flat picture.
    group_norm_primitive(lowered)
    if nodes_of(lowered, "TensorScatter"):
        grouped_attention(lowered, slots)
        added_norm(lowered)


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


def _alike(add: ir.Node) -> bool:
    """Nothing is repeated along an axis."""
    one, other = (dims(value) for value in add.inputs)
    return len(one) == 3 and one == other
