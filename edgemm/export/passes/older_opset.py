"""Say that a graph of newer opset is one of an older opset, after proving that every node of it is.

A node whose operator is newer, or that has an attribute which the older one lacks, is named in the error: the passes
that write it in older operators come before.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto

__all__ = ["older_opset"]

IR_VERSIONS = {21: 10, 24: 13}  # that came with the opset: older runtimes refuse newer ones


def older_opset(model: ModelProto, opset: int) -> bool:
    if len(model.opset_import) != 1 or model.opset_import[0].domain or model.functions:
        raise ValueError("the graph has operators of other domains or functions of its own")
    given = model.opset_import[0].version
    if given < opset:
        raise ValueError(f"the graph is of opset {given}, older than {opset} already")
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(f"{node.name}: {node.op_type} is newer than opset {opset}") from error
        unknown = [item.name for item in node.attribute if item.name not in schema.attributes]
        if unknown:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} has no attribute {unknown[0]!r}")
        if not schema.min_input <= len(node.input) <= schema.max_input:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} does not take {len(node.input)} inputs")
    model.opset_import[0].version = opset
    model.ir_version = min(model.ir_version, IR_VERSIONS[opset])
    return given != opset
