"""The last passes over a graph for ONNX Runtime's CPU provider: fewer, larger operators that say the same.

They come after the lowering, whatever the precision, so what they look for are the reference's own operators and
products that are quantized already.  Graphs that have none of it stay as they are.
"""

from __future__ import annotations

from onnx import ModelProto

from edgemm.export.passes.added_norm import added_norm
from edgemm.export.passes.fused_products import fused_products
from edgemm.export.passes.grouped_attention import grouped_attention
from edgemm.export.passes.rewriting import value_shapes

__all__ = ["for_ort_cpu"]


def for_ort_cpu(lowered: ModelProto, reference: ModelProto, slots: int) -> None:
    """In `lowered` itself; `slots` is the longest context, in tokens."""
    fused_products(lowered)
    if any(node.op_type == "TensorScatter" for node in reference.graph.node):
        shapes = value_shapes(reference)
        grouped_attention(lowered, shapes, slots)
        added_norm(lowered, shapes)
