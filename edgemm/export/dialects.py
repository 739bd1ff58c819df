"""Dialects: which operators a graph may use, and the passes that get it there from the reference graph.

`standard-24` is the reference, with the denoiser's attention as one operator too: opset 24 with Attention,
RotaryEmbedding, RMSNormalization and TensorScatter, for TensorRT 10.15 and newer, TensorRT for RTX, and ONNX Runtime
1.32.  `portable-21` writes those as primitives of opset 21, for TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.23.
Precision is decided before: passes keep the types that they meet.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from edgemm.export.passes.attention_fused import attention_fused
from edgemm.export.passes.decompositions import (
    attention_primitive,
    clip_primitive,
    gelu_primitive,
    group_norm_primitive,
    rms_norm_primitive,
    rotary_primitive,
    scatter_primitive,
)

__all__ = ["DIALECTS", "in_dialect", "older_opset"]

Pass = Callable[[ir.Model], bool]  # changes the model it is given; answers whether it did

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
IR_VERSIONS = {21: 10, 24: 13}  # that came with the opset: older runtimes refuse newer ones


def in_dialect(model: ir.Model, dialect: str) -> ir.Model:
    """A copy of the model in the dialect; ValueError names the node that cannot be said in it."""
    copy = model.clone()
    for rewrite in DIALECTS[dialect]:
        rewrite(copy)
    return copy


def older_opset(model: ir.Model, opset: int) -> bool:
    """Says that a graph of newer opset is one of an older opset, after proving that every node of it is.

    A node whose operator is newer, or that has an attribute which the older one lacks, is named in the ValueError: the
    passes that write it in older operators come before.
    """
    if set(model.opset_imports) != {""} or model.functions:
        raise ValueError("the graph has operators of other domains or functions of its own")
    given = model.opset_imports[""]
    if given < opset:
        raise ValueError(f"the graph is of opset {given}, older than {opset} already")
    for node in model.graph:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(f"{node.name}: {node.op_type} is newer than opset {opset}") from error
        unknown = [name for name in node.attributes if name not in schema.attributes]
        if unknown:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} has no attribute {unknown[0]!r}")
        if not schema.min_input <= len(node.inputs) <= schema.max_input:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} does not take {len(node.inputs)} inputs")
    model.opset_imports[""] = opset
    assert model.ir_version is not None
    model.ir_version = min(model.ir_version, IR_VERSIONS[opset])
    return given != opset
