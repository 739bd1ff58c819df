"""TensorScatter (opset 24) as ScatterND: the new keys and values at their slots, the index made once for all layers.

The cache goes in, comes out, and keeps its size.  Only axis 2 of a cache (b, g, T, d), written forwards.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["scatter_primitive"]


def scatter_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "TensorScatter", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    mode = attribute(node, "mode", b"linear")
    if len(node.input) != 3 or mode != b"linear" or attribute(node, "axis", -2) not in (2, -2):
        raise ValueError(f"{node.name}: TensorScatter without a write index, in a circle or not along the slots")
    cache, update, write_index = node.input
    groups = patch.size(cache, 1, "TensorScatter")
    new = _length(patch, *_where_named(patch, update, 2))
    return (patch.make("ScatterND", cache, _index(patch, write_index, groups, new), update),)


def _index(patch: Patch, write_index: str, groups: int, new: str) -> str:
    """(b, g, s, 3): row, group and slot of every new key."""
    zero, one = patch.constant(0, np.int64), patch.constant(1, np.int64)
    batch = _length(patch, write_index, 0)
    ends = patch.constant([1], np.int64)
    shape = patch.make("Concat", batch, patch.constant([groups], np.int64), new, ends, axis=0)
    rows = patch.make("Range", zero, patch.make("Squeeze", batch), one)
    rows = patch.make("Reshape", rows, patch.constant([-1, 1, 1, 1], np.int64))
    group = patch.constant(np.arange(groups).reshape(1, groups, 1, 1), np.int64)
    steps = patch.make("Range", zero, patch.make("Squeeze", new), one)
    start = patch.make("Unsqueeze", write_index, ends)
    slots = patch.make("Unsqueeze", patch.make("Add", start, steps), patch.constant([1, 3], np.int64))  # (b, 1, s, 1)
    return patch.make("Concat", *(patch.make("Expand", part, shape) for part in (rows, group, slots)), axis=3)


def _length(patch: Patch, name: str, axis: int) -> str:
    return patch.make("Shape", name, start=axis, end=axis + 1)


def _where_named(patch: Patch, name: str, axis: int) -> tuple[str, int]:
    """An input of the graph with an axis of the same name: every layer then asks the same question."""
    dim = patch.shapes[name][axis]
    for given in patch.inputs:
        if isinstance(dim, str) and dim in patch.shapes[given]:
            return given, patch.shapes[given].index(dim)
    return name, axis
