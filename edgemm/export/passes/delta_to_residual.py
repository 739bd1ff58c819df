"""The low-rank product of an adapter goes to the residual stream directly: r + (x W + d) becomes (r + d) + x W.

TensorRT for RTX 1.7 fails on the first form in a transformer whose o_proj and down_proj both take adapters ("value.h:
CHECK(is_const())"), whatever the sizes; it builds the second.  What adapter_points.py wrote is looked for.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

__all__ = ["delta_to_residual"]

BASE = "/base"  # how adapter_points.py names the product beside an adapter's


def delta_to_residual(model: ModelProto) -> bool:
    """In `model` itself: sums that only one other sum reads."""
    users: dict[str, list[NodeProto]] = {output.name: [] for output in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    ends = {output.name for output in model.graph.output}
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    moved = False
    for node in model.graph.node:
        made.update(node.output)
        readers = users.get(node.output[0], [])
        if not (node.op_type == "Add" and node.input[0].endswith(BASE)) or node.output[0] in ends:
            continue
        if len(readers) != 1 or readers[0].op_type != "Add":
            continue
        (reader,), (base, delta) = readers, node.input
        side = list(reader.input).index(node.output[0])
        if reader.input[1 - side] not in made:
            continue  # what it would be added to comes later
        node.input[0], node.input[1] = reader.input[1 - side], delta
        reader.input[1 - side], reader.input[side] = node.output[0], base
        moved = True
    return moved
