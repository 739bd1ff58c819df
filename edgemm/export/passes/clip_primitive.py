"""Clip of whole numbers as Max and Min: TensorRT 10's parser documents Clip for floats only."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto

from edgemm.export.passes.rewriting import Patch, expand_nodes

__all__ = ["clip_primitive"]


def clip_primitive(model: ModelProto) -> bool:
    return expand_nodes(model, "Clip", _expand, _is_whole)


def _is_whole(patch: Patch, node: NodeProto) -> bool:
    return patch.types[node.input[0]] in (TensorProto.INT64, TensorProto.INT32)


def _expand(patch: Patch, node: NodeProto) -> tuple[str]:
    x, low, high = (*node.input, "", "")[:3]
    if low:
        x = patch.make("Max", x, low)
    if high:
        x = patch.make("Min", x, high)
    return (x,)
