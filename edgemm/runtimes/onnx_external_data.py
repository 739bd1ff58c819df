"""Where an ONNX graph says its weights are, read without the onnx package, before a runtime follows it.

It looks at nothing but the paths of external data: graph, nested graphs, local functions, training graphs, tensors in
attributes, sparse tensors.  A graph may name one file only, the one the manifest declares beside it; anything else
(another folder, a link out, a second file) is refused.  The wire format is read by protobuf_wire.py.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator
from pathlib import Path

from edgemm.errors import BundleError
from edgemm.runtimes.protobuf_wire import fields

__all__ = ["check_external_data", "external_locations"]

CHILDREN = {  # message -> field number -> message that stands there (onnx.proto)
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
DEEPEST = 64
KEY = b"location"
SMALL = 1 << 16  # bytes; what is larger is not copied to be looked through


def check_external_data(graph: Path, data: Path | None) -> None:
    """Refuses a graph that names any file but `data`, which lies in its own folder."""
    allowed = data.name if data else None
    for location in external_locations(graph):
        if location != allowed:
            expected = f"only {allowed!r}" if allowed else "no file outside the graph"
            raise BundleError(f"{graph}: reads weights from {location!r}, the manifest allows {expected}")


def external_locations(graph: Path) -> set[str]:
    """Every path that the graph would have a runtime open."""
    state = graph.stat()
    if not state.st_size:
        raise BundleError(f"{graph}: is empty, expected an ONNX graph")
    return set(_found(graph, state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _found(graph: Path, *state: int) -> frozenset[str]:
    """Looked for once in a file that stays as it is: all graphs are asked when a bundle opens, each when it loads."""
    with open(graph, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # weights inside are never copied
    try:
        return frozenset(bytes(location).decode() for location in _locations(view, "model", 0))
    except (IndexError, UnicodeDecodeError, BundleError) as error:
        raise BundleError(f"{graph}: not an ONNX graph: {error}") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[bytes]:
    if depth > DEEPEST:
        raise BundleError(f"nested more than {DEEPEST} deep")
    if kind == "entry":
        yield from _entry_locations(message)
        return
    children = CHILDREN[kind]
    for number, content in fields(message, children):
        if isinstance(content, memoryview) and _may_hold_one(content):
            yield from _locations(content, children[number], depth + 1)


def _may_hold_one(message: memoryview) -> bool:
    """A message holds those inside it byte for byte, so where the key is not spelled, there is no path."""
    return len(message) > SMALL or KEY in bytes(message)


def _entry_locations(message: memoryview) -> Iterator[bytes]:
    """StringStringEntryProto: key = 1, value = 2.  A field given twice counts twice: nothing hides behind the last."""
    keys, values = [], []
    for number, content in fields(message):
        if isinstance(content, memoryview) and number in (1, 2):
            (keys if number == 1 else values).append(bytes(content))
    if KEY in keys:
        yield from values or [b""]
