"""Gelu (opset 20) as products with tanh or erf (arXiv:1606.08415), for parsers that stop before it."""

from __future__ import annotations

import math

from onnx import ModelProto, NodeProto

from edgemm.export.passes.rewriting import Patch, attribute, expand_nodes

__all__ = ["gelu_primitive"]

CUBIC = 0.044715


def gelu_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "Gelu", _expand, lambda patch, node: True)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    x = node.input[0]
    if attribute(node, "approximate", b"none") == b"tanh":
        cube = patch.make("Mul", patch.make("Mul", x, x), x)
        inner = patch.make("Add", x, patch.make("Mul", cube, patch.like(CUBIC, x)))
        bent = patch.make("Tanh", patch.make("Mul", inner, patch.like(math.sqrt(2 / math.pi), x)))
    else:
        bent = patch.make("Erf", patch.make("Mul", x, patch.like(math.sqrt(0.5), x)))
    half = patch.make("Mul", x, patch.like(0.5, x))
    return (patch.make("Mul", half, patch.make("Add", bent, patch.like(1.0, x))),)
