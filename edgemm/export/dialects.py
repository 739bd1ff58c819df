"""Dialects: which operators a graph may use, and the passes that get it there from the reference graph.

`standard-24` is the reference, with the denoiser's attention as one operator too: opset 24 with Attention,
RotaryEmbedding, RMSNormalization and TensorScatter, for TensorRT 10.15 and newer, TensorRT for RTX, and ONNX Runtime
1.32.  `portable-21` writes those as primitives of opset 21, for TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.23.
Precision is decided before: passes keep the types that they meet.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto

from edgemm.export.passes.attention_fused import attention_fused
from edgemm.export.passes.attention_primitive import attention_primitive
from edgemm.export.passes.clip_primitive import clip_primitive
from edgemm.export.passes.gelu_primitive import gelu_primitive
from edgemm.export.passes.group_norm_primitive import group_norm_primitive
from edgemm.export.passes.older_opset import older_opset
from edgemm.export.passes.rms_norm_primitive import rms_norm_primitive
from edgemm.export.passes.rotary_primitive import rotary_primitive
from edgemm.export.passes.scatter_primitive import scatter_primitive

__all__ = ["DIALECTS", "in_dialect"]

Pass = Callable[[ModelProto], bool]  # changes the model it is given; answers whether it did

DIALECTS: dict[str, tuple[Pass, ...]] = {
    "standard-24": (attention_fused, lambda model: older_opset(model, 24)),
    "portable-21": (
        scatter_primitive,
        attention_primitive,
        rotary_primitive,
        rms_norm_primitive,
        group_norm_primitive,
        gelu_primitive,
        clip_primitive,
        lambda model: older_opset(model, 21),
    ),
}


def in_dialect(model: ModelProto, dialect: str) -> ModelProto:
    """A copy of the model in the dialect; ValueError names the node that cannot be said in it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for rewrite in DIALECTS[dialect]:
        rewrite(copy)
    return copy
