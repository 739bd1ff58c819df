"""Attention (opset 23) as two products and a softmax, with nothing repeated for grouped heads (arXiv:2305.13245).

Query heads that share a key/value head are folded into the query axis: one product a group.  The mask becomes a bias,
once for all layers.  Only the form that our graphs have: four axes, a boolean mask, no cache inside, no soft cap.
Axes: b batch, h query heads, g key/value heads, r = h / g, s queries, T keys, d head width.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["attention_primitive"]

HIDDEN = -3e4  # its exponential is 0 in any precision, and float16 holds it; unlike -inf it cannot become NaN


def attention_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "Attention", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    queries, keys, values, *rest = node.input
    _check_form(patch, node)
    heads, width = patch.size(queries, 1, "Attention"), patch.size(queries, 3, "Attention")
    groups = patch.size(keys, 1, "Attention")
    value_width = patch.size(values, 3, "Attention")
    scale = attribute(node, "scale", width**-0.5)
    folded = patch.make("Reshape", queries, patch.constant([0, groups, -1, width], np.int64))  # (b, g, r*s, d)
    scaled = patch.make("Mul", folded, patch.like(scale, queries))
    scores = patch.make("MatMul", scaled, patch.make("Transpose", keys, perm=[0, 1, 3, 2]))  # (b, g, r*s, T)
    if rest:
        scores = patch.make("Add", scores, _bias(patch, rest[0], queries, heads // groups))
    weights = patch.make("Softmax", scores, axis=-1)
    attended = patch.make("MatMul", weights, values)  # (b, g, r*s, d)
    return (patch.make("Reshape", attended, patch.constant([0, heads, -1, value_width], np.int64)),)


def _bias(patch: Patch, mask: str, queries: str, repeats: int) -> str:
    """(b, 1, s, T) bool -> (b, 1, r*s, T), 0 where a key is seen."""
    bias = patch.make("Where", mask, patch.like(0.0, queries), patch.like(HIDDEN, queries))
    return bias if repeats == 1 else patch.make("Concat", *[bias] * repeats, axis=2)


def _check_form(patch: Patch, node: NodeProto) -> None:
    inputs = [name for name in node.input if name]
    plain = not any(attribute(node, name, 0) for name in ("is_causal", "softcap", "qk_matmul_output_mode"))
    masked = len(inputs) < 4 or (
        patch.types[inputs[3]] == TensorProto.BOOL
        and len(patch.shapes[inputs[3]]) == 4
        and patch.shapes[inputs[3]][1] == 1
    )
    if not (plain and masked and len(inputs) == len(node.input) <= 4 and len([o for o in node.output if o]) == 1):
        raise ValueError(
            f"{node.name}: Attention with a cache, a soft cap, causal masking or a mask that is not boolean"
        )
