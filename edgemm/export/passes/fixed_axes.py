"""Give named axes of inputs and outputs a size: TensorRT updates a cache in place only when its T is a number."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

__all__ = ["fixed_axes"]


def fixed_axes(model: ModelProto, sizes: Mapping[str, int]) -> bool:
    changed = False
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]  # one of the two is kept: they share a oneof
                changed = True
    return changed
