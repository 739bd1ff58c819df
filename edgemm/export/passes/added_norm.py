"""A residual sum and the norm that reads it as ONNX Runtime's one operator.

    RMSNormalization(Add(x, y), weight)   ->   SkipSimplifiedLayerNormalization(x, y, weight), which gives the sum too

It adds and squares in one walk over a row.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper

from edgemm.export.passes.rewriting import CONTRIB, Shape, attribute, import_contrib, replace_nodes

__all__ = ["added_norm"]


def added_norm(model: ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """In `model` itself; `shapes` are those of the reference graph.  Answers whether there was one."""
    sums = {node.output[0]: node for node in model.graph.node if node.op_type == "Add" and _alike(node, shapes)}
    norms: dict[str, NodeProto] = {}  # sum -> the first norm that reads it
    for node in model.graph.node:
        if node.op_type == "RMSNormalization" and node.input[0] in sums and attribute(node, "axis", -1) == -1:
            norms.setdefault(node.input[0], node)
    if not norms:
        return False
    gone = {node.output[0] for node in norms.values()}
    nodes = [
        node if node.output[0] not in norms else _joined(node, norms[node.output[0]])
        for node in model.graph.node
        if node.output[0] not in gone
    ]
    import_contrib(model)
    replace_nodes(model, nodes)
    return True


def _alike(node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    """Nothing is repeated along an axis."""
    one, other = (shapes.get(name, ()) for name in node.input)
    return len(one) == 3 and one == other


def _joined(add: NodeProto, norm: NodeProto) -> NodeProto:
    """At the sum's place: all that the norm reads is there by then."""
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*add.input, norm.input[1]],
        [norm.output[0], "", "", add.output[0]],
        name=norm.output[0],
        domain=CONTRIB,
        epsilon=attribute(norm, "epsilon", 1e-5),
    )
