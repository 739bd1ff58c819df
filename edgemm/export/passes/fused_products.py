"""Block-quantized products of one input as one product: queries, keys and values; gate and up.

    MatMulNBits(x, W1), MatMulNBits(x, W2), ...  ->  Split(MatMulNBits(x, [W1; W2; ...]))

The input is rounded once and threads meet once, and every number comes from the same arithmetic as before: bit for bit.
Products that differ in bits, blocks or what is added to them stay apart.
Axes: n output channels, k input channels, g groups of k.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.export.passes.rewriting import attribute, replace_nodes

__all__ = ["fused_products"]

PARTS = ("codes", "scales", "zeros")  # after x
Key = tuple[object, ...]


def fused_products(model: ModelProto) -> bool:
    """In `model` itself; answers whether anything was fused."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in weights}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    groups: dict[Key, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and _own(node, weights, casts, readers):
            kinds = [casts[name].op_type if name in casts else "" for name in node.input[1:]]
            settings = [attribute(node, name, 0) for name in ("K", "bits", "block_size", "accuracy_level")]
            groups.setdefault((node.input[0], len(node.input), *kinds, *settings), []).append(node)
    together = [nodes for nodes in groups.values() if len(nodes) > 1]
    if not together:
        return False
    made = {nodes[0].output[0]: _fused(model, nodes, weights, casts) for nodes in together}
    gone = {node.output[0] for nodes in together for node in nodes}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in made:
            kept += made[node.output[0]]
        elif node.output[0] not in gone:
            kept.append(node)
    replace_nodes(model, kept)
    return True


def _own(
    node: NodeProto, weights: dict[str, TensorProto], casts: dict[str, NodeProto], readers: dict[str, int]
) -> bool:
    """Whether its weights are stored, and read by nobody else (the head's are the embedding's too)."""
    stored = all(name in weights or name in casts for name in node.input[1:])
    return stored and len(node.input) <= 1 + len(PARTS) and all(readers[name] == 1 for name in node.input[1:])


def _fused(
    model: ModelProto, nodes: list[NodeProto], weights: dict[str, TensorProto], casts: dict[str, NodeProto]
) -> list[NodeProto]:
    """The nodes that stand for several products; rows of n follow one another in every part."""
    base, made = nodes[0].output[0], []
    inputs = [nodes[0].input[0]]
    sizes = [attribute(node, "N", 0) for node in nodes]
    for place, part in enumerate(PARTS[: len(nodes[0].input) - 1], start=1):
        names = [node.input[place] for node in nodes]
        arrays = [numpy_helper.to_array(weights[casts[n].input[0] if n in casts else n]) for n in names]
        name = f"{base}/fused_{part}"
        joined = np.concatenate([_by_channel(array, n) for array, n in zip(arrays, sizes)])
        flat = joined if arrays[0].ndim > 1 else joined.reshape(-1)
        stored = f"{name}_stored" if names[0] in casts else name
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(flat), stored))
        if names[0] in casts:
            made.append(helper.make_node("Cast", [stored], [name], to=attribute(casts[names[0]], "to", 0)))
        inputs.append(name)
    settings = {name: attribute(nodes[0], name, 0) for name in ("K", "bits", "block_size", "accuracy_level")}
    fused, split = f"{base}/fused", f"{base}/fused_sizes"
    made.append(
        helper.make_node("MatMulNBits", inputs, [fused], name=fused, domain=nodes[0].domain, N=sum(sizes), **settings)
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), split))
    outputs = [node.output[0] for node in nodes]
    made.append(helper.make_node("Split", [fused, split], outputs, name=f"{fused}/Split", axis=-1))
    return made


def _by_channel(array: np.ndarray, n: int) -> np.ndarray:
    """Rows of n, however flat they are stored: a channel's groups lie side by side, in whole bytes."""
    return array if array.ndim > 1 else array.reshape(n, -1)
