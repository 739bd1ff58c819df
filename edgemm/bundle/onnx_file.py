"""What a graph is made of, read without the onnx package: operators, types, sizes, and where its weights lie.

Enough to say whether a target can take it (graph_rules.py) before any parser sees it.  Weights are never read.  Nodes
of inner graphs and of functions are listed too, so that nothing hides there.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgemm.errors import BundleError

__all__ = ["TYPES", "Node", "Outline", "Stored", "read_outline", "fields", "check_external_data", "external_locations"]

TYPES = {  # TensorProto.DataType
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
DEEPEST = 64


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
    if not graph.stat().st_size:
        raise BundleError(f"{graph}: is empty, expected an ONNX graph")
    outline = Outline()
    with open(graph, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        for number, content in fields(view):
            if number == 1 and isinstance(content, int):
                outline.ir_version = content
            elif number == 7:
                _read_graph(_message(content), outline, 0)
            elif number == 8:
                _read_opset(_message(content), outline)
            elif number == 25:
                _read_function(_message(content), outline)
    except (IndexError, UnicodeDecodeError, ValueError, BundleError) as error:
        raise BundleError(f"{graph}: not an ONNX graph: {error}") from error
    return outline


def _message(content: memoryview | int | None) -> memoryview:
    if not isinstance(content, memoryview):
        raise BundleError("a message was expected, not a number")
    return content


def _text(content: memoryview | int | None) -> str:
    return bytes(_message(content)).decode()


def _number(content: memoryview | int | None) -> int:
    if not isinstance(content, int):
        raise BundleError("a whole number was expected")
    return content


def _read_opset(message: memoryview, outline: Outline) -> None:
    domain, version = "", 0
    for number, content in fields(message):
        if number == 1:
            domain = _text(content)
        elif number == 2:
            version = _number(content)
    outline.opsets["" if domain == "ai.onnx" else domain] = version


def _read_function(message: memoryview, outline: Outline) -> None:
    for number, content in fields(message):
        if number == 1:
            outline.functions.append(_text(content))
        elif number == 7:
            _read_node(_message(content), outline, 1)


def _read_graph(message: memoryview, outline: Outline, depth: int) -> None:
    if depth > DEEPEST:
        raise BundleError(f"nested more than {DEEPEST} deep")
    for number, content in fields(message):
        if number == 1:
            _read_node(_message(content), outline, depth)
        elif number == 5:
            _read_tensor(_message(content), outline)
        elif number in (11, 12) and depth == 0:
            _read_value(_message(content), outline, outline.inputs if number == 11 else outline.outputs)


def _read_node(message: memoryview, outline: Outline, depth: int) -> None:
    inputs, outputs, texts = [], [], {3: "", 4: "", 7: ""}
    for number, content in fields(message):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(_text(content))
        elif number in texts:
            texts[number] = _text(content)
        elif number == 5:
            for inner in _inner_graphs(_message(content)):
                _read_graph(inner, outline, depth + 1)
    domain = "" if texts[7] == "ai.onnx" else texts[7]
    outline.nodes.append(Node(texts[4], domain, texts[3], tuple(inputs), tuple(outputs), depth > 0))


def _inner_graphs(attribute: memoryview) -> Iterator[memoryview]:
    for number, content in fields(attribute):
        if number in (6, 11):
            yield _message(content)


def _read_tensor(message: memoryview, outline: Outline) -> None:
    name, kind, entries = "", 0, {}
    for number, content in fields(message):
        if number == 8:
            name = _text(content)
        elif number == 2:
            kind = _number(content)
        elif number == 13:
            pair = {key: _text(value) for key, value in fields(_message(content))}
            entries[pair.get(1, "")] = pair.get(2, "")
    outline.weights.add(name)
    outline.types[name] = TYPES.get(kind, f"type {kind}")
    if "location" in entries:
        length = int(entries["length"]) if "length" in entries else None
        outline.stored.append(Stored(name, entries["location"], int(entries.get("offset", 0)), length))


def _read_value(message: memoryview, outline: Outline, side: dict[str, tuple[int | str, ...]]) -> None:
    name, kind, shape = "", 0, []
    for number, content in fields(message):
        if number == 1:
            name = _text(content)
        elif number == 2:
            for inner, tensor in fields(_message(content)):
                if inner == 1:
                    kind, shape = _read_type(_message(tensor))
    side[name] = tuple(shape)
    outline.types[name] = TYPES.get(kind, f"type {kind}")


def _read_type(message: memoryview) -> tuple[int, list[int | str]]:
    kind, shape = 0, []
    for number, content in fields(message):
        if number == 1:
            kind = _number(content)
        elif number == 2:
            for dim, entry in fields(_message(content)):
                if dim == 1:
                    found = dict(fields(_message(entry)))
                    size = found.get(1)
                    shape.append(size if isinstance(size, int) else _text(found[2]) if 2 in found else "?")
    return kind, shape


# The protobuf wire format, as far as reading ONNX graphs without the onnx package takes it: fields of one message.
#
# Nothing is copied: contents are views of the file.  What a field means is for the caller to know.

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview, wanted: Container[int] | None = None) -> Iterator[tuple[int, memoryview | int | None]]:
    """(field number, content) of each field, or of the wanted ones: bytes as a view, whole numbers as themselves, None
    for floats."""
    at, end = 0, len(message)
    while at < end:
        tag, at = (message[at], at + 1) if message[at] < 0x80 else _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        start = at
        content: memoryview | int | None = None
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
        if wanted is None or number in wanted:
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
# (another folder, a link out, a second file) is refused.  The wire format is read by onnx_file.py.

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
KEY = b"location"
SMALL = 1 << 16  # bytes; what is larger is not copied to be looked through


def check_external_data(graph: Path, data: Path | None, content: memoryview | None = None) -> None:
    """Refuses a graph that names any file but `data`, which lies in its own folder; `content` is the graph's, where
    that was read already."""
    allowed = data.name if data else None
    for location in external_locations(graph) if content is None else _locations_in(graph, content):
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
        return _locations_in(graph, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _locations_in(graph: Path, view: memoryview) -> frozenset[str]:
    """Weights inside are never copied."""
    if not len(view):
        raise BundleError(f"{graph}: is empty, expected an ONNX graph")
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
