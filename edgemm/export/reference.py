"""Trace a component once, in float32, to its reference graph: opset 24, named axes, weights in one external file.

Lowering it for a target comes after (lower_cpu.py).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnx import ModelProto

from edgemm.export.component_graphs import ComponentGraph

__all__ = ["OPSET", "save_graph", "trace"]

OPSET = 24


def trace(graph: ComponentGraph) -> ModelProto:
    """The component as an ONNX model, weights inside."""
    names = list(graph.inputs)
    dims: dict[str, torch.export.Dim] = {}
    shapes = tuple(
        {
            axis: dims.setdefault(name, torch.export.Dim(f"{name}_", min=1, max=1 << 20))
            for axis, name in enumerate(graph.axes[input_name])
            if isinstance(name, str)
        }
        for input_name in names
    )
    takes_star = graph.module.forward.__code__.co_flags & 0x04
    module = graph.module.eval()
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(graph.inputs.values()),
            input_names=names,
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(shapes,) if takes_star else shapes,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_axes(model, graph)
    return model


@contextlib.contextmanager
def _quiet():
    """The tracer's chatter is for its developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _name_axes(model: ModelProto, graph: ComponentGraph) -> None:
    """Write the contract's axis names over the tracer's, and drop the debugging notes that name local files."""
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis in graph.axes[value.name]:
            dim = shape.dim.add()
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis
    del model.graph.value_info[:]
    model.producer_name, model.producer_version = "edgemm", ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (model.graph.initializer, model.graph.input, model.graph.output):
        for value in part:
            value.doc_string = ""
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    del model.metadata_props[:]


def save_graph(model: ModelProto, path: Path) -> Path | None:
    """Write the graph and, beside it, one file with its weights. Returns the weights' path, None if it has none of size."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
        convert_attribute=False,
    )
    return data if data.exists() else None
