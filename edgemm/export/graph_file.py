"""Write a graph and, beside it, one file with its weights; nothing in them says where or by what they were made.

The same graph gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto

__all__ = ["save_graph", "tidy"]

INLINE_BYTES = 1024  # smaller tensors stay in the graph: shapes and scalars are read when it is loaded


def save_graph(model: ModelProto, path: Path) -> Path | None:
    """Returns where the weights went, None when there are none of size.  Moves them out of `model` itself."""
    tidy(model)
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=INLINE_BYTES,
        convert_attribute=False,
    )
    if not data.exists():
        return None
    data.chmod(path.stat().st_mode)  # onnx makes it readable by its owner alone
    return data


def tidy(model: ModelProto) -> None:
    """Drop the notes of tracer and quantizer: stack traces, parameter lists, guessed shapes, names of tools."""
    model.producer_name, model.producer_version, model.doc_string = "edgemm", "", ""
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for values in (graph.node, graph.initializer, graph.input, graph.output):
            for value in values:
                value.doc_string = ""
                del value.metadata_props[:]


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from _graphs(inner)
