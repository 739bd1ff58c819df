"""What a graph is made of, read without the onnx package: operators, types, sizes, and where its weights lie.

Enough to say whether a target can take it (graph_rules.py) before any parser sees it.  Weights are never read.  Nodes
of inner graphs and of functions are listed too, so that nothing hides there.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgemm.errors import BundleError
from edgemm.runtimes.protobuf_wire import fields

__all__ = ["TYPES", "Node", "Outline", "Stored", "read_outline"]

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
