"""Block-quantized products of one input as one product: queries, keys and values; gate and up.

    MatMulNBits(x, W1), MatMulNBits(x, W2), ...  ->  Split(MatMulNBits(x, [W1; W2; ...]))

The input is rounded once and threads meet once, and every number comes from the same arithmetic as before: bit for bit.
Products that differ in bits, blocks or what is added to them stay apart.
Axes: n output channels, k input channels, g groups of k.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.export.passes.rewriting import CONTRIB, Writer, drop_unread, made_by, nodes_of, stored

__all__ = ["fused_products"]

PARTS = ("codes", "scales", "zeros")  # after x
SETTINGS = ("K", "bits", "block_size", "accuracy_level")


def fused_products(model: ir.Model) -> bool:
    """In `model` itself; answers whether anything was fused."""
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
