"""Write a graph and, beside it, one file with its weights; nothing in them says where or by what they were made.

The same graph gives the same bytes.  Weights that several variants of a component have in common are stored once.  A
graph may name one data file only, in its own folder (docs/bundle.md), so a variant whose large tensors all lie in an
earlier variant's file points there, and writes none of its own: the two dialects of one precision differ in nodes,
never in weights.  A component that uses another one's weights lies in that one's folder, and what it has beside them is
written behind them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto

__all__ = ["StoredWeights", "save_graph", "tidy"]

ALIGNED = 64  # bytes: what follows another component's weights
INLINE_BYTES = 1024  # smaller tensors stay in the graph: shapes and scalars are read when it is loaded


def save_graph(model: ir.Model, path: Path) -> Path | None:
    """Returns where the weights went, None when there are none of size.  Moves them out of `model` itself."""
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    if _large(model):
        ir.external_data.unload_from_model(model, path.parent, data.name, size_threshold_bytes=INLINE_BYTES - 1)
    _write(model, path)
    if not data.exists():
        return None
    data.chmod(path.stat().st_mode)  # else it may be readable by its owner alone
    return data


class StoredWeights:
    """The data files of one component so far, or of several that use the same weights."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, ir.ExternalTensor]] = {}  # data file -> digest of a tensor -> where it lies

    def save(self, model: ir.Model, path: Path, behind: bool = False) -> Path | None:
        """As save_graph does, but the weights may be those of an earlier graph in the same folder.

        With `behind`, those that it lacks are written behind the ones of the file that has most.
        """
        large = {value: _digest(tensor) for value, tensor in _large(model).items()}
        sizes = {large[value]: tensor.nbytes for value, tensor in _large(model).items()}
        here = [data for data in self._files if data.parent == path.parent]
        common = {data: sum(sizes[each] for each in sizes.keys() & self._files[data].keys()) for data in here}
        data = max(here, key=lambda each: common[each], default=None)
        if data is not None and large and (common[data] == sum(sizes.values()) or (behind and common[data])):
            places = self._files[data]
            for value, digest in large.items():
                if digest not in places and value.const_value is not None:
                    places[digest] = _append(data, value.const_value)
                value.const_value = _named(places[digest], value)
            _write(model, path)
            return data
        data = save_graph(model, path)
        if data is not None:
            self._files[data] = {
                large[value]: tensor for value, tensor in _large(model).items() if isinstance(tensor, ir.ExternalTensor)
            }
        return data


def _append(data: Path, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    with open(data, "ab") as file:
        file.write(b"\0" * (-file.tell() % ALIGNED))
        start = file.tell()
        file.write(tensor.tobytes())
    return ir.ExternalTensor(
        data.name,
        start,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.numpy().shape),
        name=tensor.name or "",
        base_dir=data.parent,
    )


def _large(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    tensors = {value: value.const_value for value in model.graph.initializers.values()}
    return {value: tensor for value, tensor in tensors.items() if tensor is not None and tensor.nbytes >= INLINE_BYTES}


def _digest(tensor: ir.TensorProtocol) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.tobytes())
    return digest.hexdigest()


def _named(tensor: ir.ExternalTensor, value: ir.Value) -> ir.ExternalTensor:
    """The same place, by another graph's name."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype,
        shape=tensor.shape, name=value.name or "", base_dir=tensor.base_dir,
    )  # fmt: skip


def _write(model: ir.Model, path: Path) -> None:
    proto = ir.to_proto(model)
    tidy(proto)
    onnx.save_model(proto, str(path))


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
