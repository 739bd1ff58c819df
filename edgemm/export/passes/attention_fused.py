"""Attention written out, as the denoiser's is (edgemm/model/transformer.py), back as one Attention (opset 23).

Engines have kernels for the operator; for its parts they may or may not find one.  What is looked for, backwards from a
Softmax, for a mask that is the same for every query (query heads may have been folded into the query axis):

    MatMul(Softmax(Reshape?(Reshape?(MatMul(Mul(q, scale), Transpose(k))) + bias)), v)
    bias = Unsqueeze?(Where(Not(mask), -inf, 0))

What looks otherwise stays as it is.
Axes: b batch, h heads, q queries, k keys, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.export.passes.rewriting import attribute, replace_nodes, value_shapes

__all__ = ["attention_fused"]

SHAPING = ("Reshape", "Unsqueeze")


@dataclass(frozen=True)
class Found:
    last: NodeProto  # the product with the values
    queries: str
    keys: str
    values: str
    mask: str  # bool (b, 1, 1, k)
    scale: float


def attention_fused(model: ModelProto) -> bool:
    shapes = value_shapes(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    matches = [found for node in softmaxes if (found := _match(node, makers, weights, users, shapes))]
    if not matches:
        return False
    lasts = {found.last.output[0]: found for found in matches}
    wide: dict[tuple[str, int], str] = {}  # mask and queries -> the mask with a row a query
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        found = lasts.get(node.output[0])
        if found is None:
            nodes.append(node)
            continue
        queries = shapes[found.queries][2]
        assert isinstance(queries, int)
        mask = wide.get((found.mask, queries))
        if mask is None:
            mask = wide[found.mask, queries] = f"{found.mask}/rows_{queries}"
            size = numpy_helper.from_array(np.array([1, 1, queries, 1], np.int64), f"{mask}/size")
            model.graph.initializer.append(size)
            nodes.append(helper.make_node("Expand", [found.mask, size.name], [mask], name=mask))
        inputs = [found.queries, found.keys, found.values, mask]
        nodes.append(helper.make_node("Attention", inputs, list(node.output), name=node.name, scale=found.scale))
    replace_nodes(model, nodes)
    return True


def _match(
    softmax: NodeProto,
    makers: dict[str, NodeProto],
    weights: dict[str, TensorProto],
    users: dict[str, list[NodeProto]],
    shapes: dict[str, tuple[int | str | None, ...]],
) -> Found | None:
    add = _behind(softmax.input[0], "Add", makers)
    readers = users.get(softmax.output[0], [])
    if add is None or len(readers) != 1 or readers[0].op_type != "MatMul":
        return None
    product, bias = _behind(add.input[0], "MatMul", makers), _behind(add.input[1], "Where", makers)
    scaled = product and _behind(product.input[0], "Mul", makers, shaping=())
    turned = product and _behind(product.input[1], "Transpose", makers, shaping=())
    negated = bias and _behind(bias.input[0], "Not", makers, shaping=())
    if not (scaled and turned and negated and scaled.input[1] in weights):
        return None
    hides = bias is not None and bias.input[1] in weights and _number(weights[bias.input[1]]) == -np.inf
    scale, queries, keys = _number(weights[scaled.input[1]]), scaled.input[0], turned.input[0]
    heads = {shapes.get(name, ())[1:2] for name in (queries, keys)}
    plain = attribute(turned, "perm", []) == [0, 1, 3, 2] and len(shapes.get(queries, ())) == 4 and len(heads) == 1
    one_row = len(shapes.get(negated.input[0], ())) == 4 and shapes[negated.input[0]][1:3] == (1, 1)
    if not (hides and plain and one_row and scale is not None and isinstance(shapes[queries][2], int)):
        return None
    return Found(readers[0], queries, keys, readers[0].input[1], negated.input[0], scale)


def _behind(
    name: str, op_type: str, makers: dict[str, NodeProto], shaping: tuple[str, ...] = SHAPING
) -> NodeProto | None:
    """The node that makes a value, looking through what only changes its shape."""
    node = makers.get(name)
    while node is not None and node.op_type in shaping:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == op_type else None


def _number(tensor: TensorProto) -> float | None:
    array = numpy_helper.to_array(tensor)
    return float(array) if array.ndim == 0 else None
