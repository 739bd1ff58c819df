"""GroupNormalization (opset 21) as reshapes, means and products (arXiv:1803.08494), for parsers that do not know it.

The statistics are taken in float32, by a Cast that is seen, as the operator's own stash_type asks for.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["group_norm_primitive"]


def group_norm_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "GroupNormalization", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    x, scale, bias = node.input  # (b, c, ...), (c), (c)
    given, channels = patch.types[x], patch.size(x, 1, "the channels")
    wide = x if given == TensorProto.FLOAT else patch.make("Cast", x, to=TensorProto.FLOAT)
    groups = patch.constant([0, attribute(node, "num_groups", 1), -1], np.int64)
    rows = patch.make("Reshape", wide, groups)  # (b, groups, numbers)
    last = patch.constant([2], np.int64)
    centred = patch.make("Sub", rows, patch.make("ReduceMean", rows, last, keepdims=1))
    variance = patch.make("ReduceMean", patch.make("Mul", centred, centred), last, keepdims=1)
    epsilon = patch.constant(attribute(node, "epsilon", 1e-5), np.float32)
    normed = patch.make("Div", centred, patch.make("Sqrt", patch.make("Add", variance, epsilon)))
    if given != TensorProto.FLOAT:
        normed = patch.make("Cast", normed, to=given)
    back = patch.make("Reshape", normed, patch.make("Shape", x))
    over_places = patch.constant([channels, *[1] * (len(patch.shapes[x]) - 2)], np.int64)
    scale, bias = (patch.make("Reshape", each, over_places) for each in (scale, bias))
    return (patch.make("Add", patch.make("Mul", back, scale), bias),)
