"""RotaryEmbedding (opset 23) as products: the first half of a head turned against the second (arXiv:2104.09864).

Only the form that our transformers have: x (b, h, s, d), tables (b, s, d/2), whole heads, halves not interleaved.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["rotary_primitive"]


def rotary_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "RotaryEmbedding", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    interleaved, part = attribute(node, "interleaved", 0), attribute(node, "rotary_embedding_dim", 0)
    if interleaved or part or len(node.input) > 3 or len(patch.shapes[node.input[0]]) != 4:
        raise ValueError(f"{node.name}: RotaryEmbedding with interleaved halves, part of a head or position ids")
    x, *tables = node.input
    half = patch.size(x, -1, "RotaryEmbedding") // 2
    heads = patch.constant([1], np.int64)
    cos, sin = (patch.make("Unsqueeze", table, heads) for table in tables)  # (b, 1, s, d/2)
    first, second = patch.make_many("Split", (x, patch.constant([half, half], np.int64)), 2, axis=-1)
    turned = patch.make("Sub", patch.make("Mul", first, cos), patch.make("Mul", second, sin))
    other = patch.make("Add", patch.make("Mul", second, cos), patch.make("Mul", first, sin))
    return (patch.make("Concat", turned, other, axis=-1),)
