"""Heads whose width is no multiple of 8, filled up with zeros: NVIDIA's compiler (Myelin) has no attention for others.

    Attention(q, k, v, mask)   ->   Slice(Attention(Pad(q), Pad(k), Pad(v), mask, scale=1/sqrt(d)))

Products with zeros add nothing, and the scale stays that of the real width.  TensorRT for RTX 1.7 fails on widths of
12, 20 and 100 ("tactics_tiled_layout.cpp: CHECK(op->input_layouts().size() > idx)"), also where attention may be taken
apart; it builds them so.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgemm.export.passes.rewriting import Writer, dims, infer, nodes_of

__all__ = ["padded_heads"]

STEP = 8


def padded_heads(model: ir.Model) -> bool:
    """In `model` itself; answers whether there was such a head."""
    found = nodes_of(model, "Attention")
    if found:
        infer(model)
    odd = [node for node in found if _width(node.inputs[0]) % STEP or _width(node.inputs[2]) % STEP]
    writer = Writer(model)
    for node in odd:
        writer.place = node
        queries, keys, values, *others = node.inputs
        width, out = _width(queries), _width(values)
        attributes: dict[str, Any] = {name: item.value for name, item in node.attributes.items()}
        attributes["scale"] = node.attributes.get_float("scale", width**-0.5)
        wide = [_filled(writer, value) for value in (queries, keys, values)]
        attended = writer.make("Attention", *wide, *others, domain="", **attributes)
        if out % STEP:
            attended = writer.make("Slice", attended, *(writer.constant([n]) for n in (0, out, 3)))
        writer.replace(node, attended)
    return bool(odd)


def _width(value: ir.Value | None) -> int:
    """Of the heads (b, h, s, d); 0 where that is not a number."""
    shape = dims(value)
    return shape[3] if len(shape) == 4 and isinstance(shape[3], int) else 0


def _filled(writer: Writer, value: ir.Value | None) -> ir.Value | None:
    more = -_width(value) % STEP
    return writer.make("Pad", value, writer.constant([0] * 7 + [more])) if more else value
