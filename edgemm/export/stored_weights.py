"""Weights that several variants of a component, or several components, have in common, stored once.

A graph may name one data file only, in its own folder (docs/bundle.md).  So a variant whose large tensors all lie in an
earlier variant's file points there, and writes none of its own: the two dialects of one precision differ in nodes,
never in weights.  A component that uses another one's weights lies in that one's folder, and what it has beside them is
written behind them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from onnx import ModelProto, TensorProto

from edgemm.export.graph_file import INLINE_BYTES, save_graph

__all__ = ["StoredWeights"]

Place = tuple[int, int]  # offset and length, bytes
ALIGNED = 64  # bytes: what follows another component's weights


class StoredWeights:
    """The data files of one component so far."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Place]] = {}  # data file -> digest of a tensor -> where it lies

    def save(self, model: ModelProto, path: Path, behind: bool = False) -> Path | None:
        """As save_graph does, but the weights may be those of an earlier graph in the same folder.

        With `behind`, those that it lacks are written behind the ones of the file that has most.
        """
        large = {t.name: _digest(t) for t in model.graph.initializer if len(t.raw_data) >= INLINE_BYTES}
        sizes = {large[t.name]: len(t.raw_data) for t in model.graph.initializer if t.name in large}
        here = [data for data in self._files if data.parent == path.parent]
        common = {data: sum(sizes[each] for each in sizes.keys() & self._files[data].keys()) for data in here}
        data = max(here, key=lambda each: common[each], default=None)
        if data is not None and large and (common[data] == sum(sizes.values()) or (behind and common[data])):
            places = self._files[data]
            for tensor in model.graph.initializer:
                if tensor.name in large:
                    if large[tensor.name] not in places:
                        places[large[tensor.name]] = _append(data, tensor.raw_data)
                    _point(tensor, data.name, places[large[tensor.name]])
            save_graph(model, path)
            return data
        data = save_graph(model, path)
        if data is not None:
            self._files[data] = {large[t.name]: _place(t) for t in model.graph.initializer if t.name in large}
        return data


def _append(data: Path, content: bytes) -> Place:
    with open(data, "ab") as file:
        file.write(b"\0" * (-file.tell() % ALIGNED))
        start = file.tell()
        file.write(content)
    return start, len(content)


def _digest(tensor: TensorProto) -> str:
    kind = f"{tensor.data_type} {list(tensor.dims)} ".encode()
    digest = hashlib.sha256(kind)
    digest.update(tensor.raw_data)
    return digest.hexdigest()


def _point(tensor: TensorProto, location: str, place: Place) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", place[0]), ("length", place[1])):
        tensor.external_data.add(key=key, value=str(value))


def _place(tensor: TensorProto) -> Place:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["offset"]), int(entries["length"])
