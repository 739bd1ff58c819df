"""What a graph is made of, read without the onnx package: operators, types, sizes, and where its weights lie.

Enough to say whether a target can take it (graph_rules.py) before any parser sees it.  Weights are never read.  Nodes
of inner graphs and of functions are listed too, so that nothing hides there.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgemm.errors import BundleError

__all__ = [
    "ROUTED",
    "TYPES",
    "Node",
    "Outline",
    "Stored",
    "as_message",
    "check_external_data",
    "external_locations",
    "fields",
    "read_outline",
]

TYPES = {  # TensorProto.DataType
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
ROUTED = ("MoE", "QMoE")  # ONNX Runtime's: a token goes to some of several experts
DEEPEST = 64  # messages in one another
EMPTY = memoryview(b"")
Content = memoryview | int | None
Field = tuple[int, Content]


@dataclass(frozen=True)
class Node:
    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inner: bool  # lies in an inner graph or in a function

    def __str__(self) -> str:
        return f"{self.op_type} {(self.name or ', '.join(self.outputs))!r}"


@dataclass(frozen=True)
class Stored:
    """A tensor whose numbers lie in another file."""

    name: str
    location: str
    offset: int
    length: int | None


@dataclass
class Outline:
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)  # domain -> version
    functions: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)  # of weights, inputs and outputs
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)  # of the main graph -> shape
    outputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    stored: list[Stored] = field(default_factory=list)


def read_outline(graph: Path) -> Outline:
    outline = Outline()
    with _reading(graph) as view:
        for way, found in _walk(view):
            if way[-1] == "node":
                outline.nodes.append(_node(found, way != ("model", "graph", "node")))
            elif way[-2:] == ("graph", "tensor"):
                _read_tensor(found, outline)
            elif way == ("model", "graph"):
                for side, number in ((outline.inputs, 11), (outline.outputs, 12)):
                    for content in _all(found, number):
                        _read_value(content, outline, side)
            elif way == ("model", "function"):
                outline.functions += map(_text, _all(found, 1))
            elif way == ("model",):
                outline.ir_version = _whole(dict(found).get(1, 0))
                outline.opsets = dict(map(_opset, _all(found, 8)))
    return outline


@contextmanager
def _reading(graph: Path, content: memoryview | None = None) -> Iterator[memoryview]:
    """The whole file, weights inside never copied; BundleError for whatever is no ONNX graph."""
    if not (graph.stat().st_size if content is None else len(content)):
        raise BundleError(f"{graph}: is empty, expected an ONNX graph")
    if content is None:
        with open(graph, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        yield content
    except (IndexError, UnicodeDecodeError, ValueError, BundleError) as error:
        raise BundleError(f"{graph}: not an ONNX graph: {error}") from error


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


def _walk(
    message: memoryview, keep: Callable[[memoryview], bool] = bool, way: tuple[str, ...] = ("model",)
) -> Iterator[tuple[tuple[str, ...], list[Field]]]:
    """(the messages it lies in, its fields) of a message and, before it, of those inside that `keep` lets pass."""
    if len(way) > DEEPEST:
        raise BundleError(f"nested more than {DEEPEST} deep")
    found, children = list(fields(message)), CHILDREN[way[-1]]
    for number, content in found:
        if number in children and isinstance(content, memoryview) and keep(content):
            yield from _walk(content, keep, (*way, children[number]))
    yield way, found


def as_message(content: Content) -> memoryview:
    """A field's content where a message is expected; BundleError of a number."""
    if not isinstance(content, memoryview):
        raise BundleError("a message was expected, not a number")
    return content


def _text(content: Content) -> str:
    return bytes(as_message(content)).decode()


def _all(found: Sequence[Field], wanted: int) -> list[memoryview]:
    return [as_message(content) for number, content in found if number == wanted]


def _domain(content: Content) -> str:
    return "" if (domain := _text(content)) == "ai.onnx" else domain


def _whole(content: Content) -> int:
    if not isinstance(content, int):
        raise BundleError("a whole number was expected")
    return content


def _opset(message: memoryview) -> tuple[str, int]:
    found = dict(fields(message))
    return _domain(found.get(1, EMPTY)), _whole(found.get(2, 0))


def _node(found: Sequence[Field], inner: bool) -> Node:
    last = dict(found)
    inputs, outputs = (tuple(map(_text, _all(found, number))) for number in (1, 2))
    return Node(
        _text(last.get(4, EMPTY)), _domain(last.get(7, EMPTY)), _text(last.get(3, EMPTY)), inputs, outputs, inner
    )


def _read_tensor(found: Sequence[Field], outline: Outline) -> None:
    last = dict(found)
    name = _text(last.get(8, EMPTY))
    outline.weights.add(name)
    outline.types[name] = _type_name(last.get(2, 0))
    pairs = (dict(fields(entry)) for entry in _all(found, 13))
    entries = {_text(pair.get(1, EMPTY)): _text(pair.get(2, EMPTY)) for pair in pairs}
    if "location" in entries:
        length = int(entries["length"]) if "length" in entries else None
        outline.stored.append(Stored(name, entries["location"], int(entries.get("offset", 0)), length))


def _read_value(message: memoryview, outline: Outline, side: dict[str, tuple[int | str, ...]]) -> None:
    found = dict(fields(message))
    tensor = dict(fields(as_message(dict(fields(as_message(found.get(2, EMPTY)))).get(1, EMPTY))))
    name = _text(found.get(1, EMPTY))
    side[name] = tuple(_size(entry) for number, entry in fields(as_message(tensor.get(2, EMPTY))) if number == 1)
    outline.types[name] = _type_name(tensor.get(1, 0))


def _type_name(kind: Content) -> str:
    return TYPES.get(_whole(kind), f"type {kind}")


def _size(entry: Content) -> int | str:
    found = dict(fields(as_message(entry)))
    size = found.get(1)
    return size if isinstance(size, int) else _text(found[2]) if 2 in found else "?"


# The protobuf wire format, as far as reading ONNX graphs without the onnx package takes it: fields of one message.
#
# Nothing is copied: contents are views of the file.  What a field means is for the caller to know.

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[Field]:
    """(field number, content) of each field: bytes as a view, whole numbers as themselves, None for floats."""
    at, end = 0, len(message)
    while at < end:
        tag, at = (message[at], at + 1) if message[at] < 0x80 else _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        start = at
        content: Content = None
        if wire_type == BYTES:
            length, start = (message[at], at + 1) if message[at] < 0x80 else _varint(message, at)
            at = start + length
        elif wire_type == VARINT:
            content, at = _varint(message, at)
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        else:
            raise BundleError(f"wire type {wire_type} at byte {at}")
        if at > end:
            raise BundleError(f"a field runs {at - end} bytes past its message")
        yield number, message[start:at] if wire_type == BYTES else content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError(f"a number of more than 10 bytes at byte {at}")


# Where an ONNX graph says its weights are, read without the onnx package, before a runtime follows it.
#
# It looks at nothing but the paths of external data: graph, nested graphs, local functions, training graphs, tensors in
# attributes, sparse tensors.  A graph may name one file only, the one the manifest declares beside it; anything else
# (another folder, a link out, a second file) is refused.

KEY = b"location"
SMALL = 1 << 16  # bytes; what is larger is not copied to be looked through


def check_external_data(
    graph: Path, data: Path | None, content: memoryview | None = None, shared: Collection[str] = ()
) -> None:
    """Refuses a graph that names any file but `data`, which lies in its own folder, and those `shared` below it;
    `content` is the graph's, where that was read already."""
    allowed = [*([data.name] if data else []), *shared]
    for location in external_locations(graph) if content is None else _locations_in(graph, content):
        if location not in allowed:
            expected = f"only {', '.join(map(repr, allowed))}" if allowed else "no file outside the graph"
            raise BundleError(f"{graph}: reads weights from {location!r}, the manifest allows {expected}")


def external_locations(graph: Path) -> set[str]:
    """Every path that the graph would have a runtime open."""
    state = graph.stat()
    return set(_found(graph, state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _found(graph: Path, *state: int) -> frozenset[str]:
    """Looked for once in a file that stays as it is: all graphs are asked when a bundle opens, each when it loads."""
    return _locations_in(graph, None)


def _locations_in(graph: Path, content: memoryview | None) -> frozenset[str]:
    with _reading(graph, content) as view:
        entries = (found for way, found in _walk(view, _may_hold_one) if way[-1] == "entry")
        return frozenset(bytes(location).decode() for found in entries for location in _entry_locations(found))


def _may_hold_one(message: memoryview) -> bool:
    """A message holds those inside it byte for byte, so where the key is not spelled, there is no path."""
    return len(message) > SMALL or KEY in bytes(message)


def _entry_locations(found: Sequence[Field]) -> Sequence[memoryview | bytes]:
    """StringStringEntryProto: key = 1, value = 2.  A field given twice counts twice: nothing hides behind the last."""
    return (_all(found, 2) or [b""]) if KEY in _all(found, 1) else ()
