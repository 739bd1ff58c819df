"""RMSNormalization (opset 23) as products and a mean: x / sqrt(mean(x x) + epsilon) * weight (arXiv:1910.07467).

The statistics are taken in float32, by a Cast that is seen, as the operator's own stash_type asks for.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["rms_norm_primitive"]


def rms_norm_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "RMSNormalization", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    x, weight = node.input
    given = patch.types[x]
    rank = len(patch.shapes[x])
    first = attribute(node, "axis", -1) % rank
    wide = x if given == TensorProto.FLOAT else patch.make("Cast", x, to=TensorProto.FLOAT)
    axes = patch.constant(list(range(first, rank)), np.int64)
    mean = patch.make("ReduceMean", patch.make("Mul", wide, wide), axes, keepdims=1)
    epsilon = patch.constant(attribute(node, "epsilon", 1e-5), np.float32)
    normed = patch.make("Div", wide, patch.make("Sqrt", patch.make("Add", mean, epsilon)))
    if given != TensorProto.FLOAT:
        normed = patch.make("Cast", normed, to=given)
    return (patch.make("Mul", normed, weight),)
