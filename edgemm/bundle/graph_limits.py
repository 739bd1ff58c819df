"""What a graph of a stranger would do to its reader, said before a library sees it: no end, no memory, no such bytes.

Libraries fold constants and follow loops while they load, and trust their input.  Sizes here are lower bounds: an axis
without a number counts as one, and what this page knows no rule for gives nothing away.  So what is refused would
really have taken that much; the rest is tried in another process first (runtimes/first_load.py).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgemm.bundle.onnx_file import TYPES, as_message, fields
from edgemm.errors import BundleError

__all__ = ["broken_limits"]

MOST_BYTES = 1 << 30  # of one value that is not a weight
MOST_ROUNDS = 100_000  # of a Loop or Scan, those within one another multiplied
MOST_NODES = 100_000  # of a graph; 100 times what a large model's has, and a minute's work for a library
MOST_UNFOLDED = 1_000_000  # nodes of a function, with those of the functions it calls in their place
MOST_NUMBERS = 4096  # of a constant, that its numbers are looked at
DEEPEST = 64
BITS = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2, "complex128": 128}
BITS |= dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64)
BITS |= dict.fromkeys(("int32", "uint32", "float32"), 32) | dict.fromkeys(
    ("int16", "uint16", "float16", "bfloat16"), 16
)
PLAIN = re.compile(r"-?[0-9]{1,20}")
SIGNED = {"int8": "b", "int16": "h", "int32": "i", "int64": "q"}
UNSIGNED = {"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"}
SAME = frozenset({"Identity", "Cast", "Neg", "Abs", "Not", "Relu", "Sigmoid", "Tanh", "Exp", "Sqrt", "Erf", "Softmax"})
SPREAD = frozenset({"Add", "Sub", "Mul", "Div", "Mod", "Pow", "Where", "And", "Or", "Equal", "Less", "Greater"})
INDEXED = {  # operator -> input of places, input that they lie in, axis (None: any), may they count from its end
    ("", "Gather"): (1, 0, "axis", True),
    ("", "GatherElements"): (1, 0, "axis", True),
    ("", "ScatterElements"): (1, 0, "axis", True),
    ("", "GatherND"): (1, 0, None, True),
    ("", "ScatterND"): (1, 0, None, True),
    ("", "TensorScatter"): (2, 0, None, False),
    ("", "RotaryEmbedding"): (3, 1, 0, False),
    ("com.microsoft", "RotaryEmbedding"): (1, 2, 0, False),
    ("com.microsoft", "GatherBlockQuantized"): (1, 0, "gather_axis", True),  # gives zeros, without a word
    ("com.microsoft", "GroupQueryAttention"): (5, 3, 2, False),
    ("com.microsoft", "MatMulNBits"): (4, 1, 1, False),
}
Shape = tuple[int, ...]


@dataclass
class _Value:
    """What is known of one name; a shape of None is not known."""

    shape: Shape | None = None
    numbers: tuple[int, ...] | None = None  # of small constants of whole numbers
    kind: str = ""


@dataclass
class _Tensor:
    name: str = ""
    kind: str = ""
    dims: Shape = ()
    raw: memoryview | None = None
    numbers: list[int] = field(default_factory=list)  # of int32_data or int64_data
    entries: dict[str, str] = field(default_factory=dict)


@dataclass
class _Node:
    op_type: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[memoryview] = field(default_factory=list)
    value: _Tensor | None = None  # a Constant's
    sparse: list[memoryview] = field(default_factory=list)
    settings: dict[str, int] = field(default_factory=dict)  # attributes that are whole numbers

    def __str__(self) -> str:
        return f"{self.op_type} {(self.name or ', '.join(self.outputs))!r}"


def broken_limits(graph: memoryview, data_bytes: Mapping[str, int]) -> Iterator[str]:
    """One line for everything that may not be; `data_bytes` is every file of weights that it names, and its size.

    Raises BundleError, IndexError, ValueError or UnicodeDecodeError where it is no ONNX graph.
    """
    calls: dict[str, list[str]] = {}
    if not len(graph):
        yield "is empty, expected an ONNX graph"
    for number, content in _some(graph, (7, 25)):
        content = as_message(content)
        if number == 7:
            yield from _graph(content, {}, data_bytes, 0)
        else:
            name, called, broken = _function(content, data_bytes)
            calls.setdefault(name, []).extend(called)
            yield from broken
    yield from (f"function {name!r} calls itself" for name in calls if _reaches(name, name, calls, set()))
    sizes: dict[str, int] = {}
    for name in calls:
        if _unfolded(name, calls, sizes, 0) > MOST_UNFOLDED:
            yield f"function {name!r} unfolds into more than {MOST_UNFOLDED} nodes"


def _some(message: memoryview, wanted: tuple[int, ...]) -> Iterator[tuple[int, memoryview | int | None]]:
    return ((number, content) for number, content in fields(message) if number in wanted)


def _function(message: memoryview, data_bytes: Mapping[str, int]) -> tuple[str, list[str], list[str]]:
    name, called, broken, values = "", [], [], {}
    for number, content in _some(message, (1, 7)):
        content = as_message(content)
        if number == 1:
            name = bytes(content).decode()
        else:
            node = _node(content)
            called += _called(node, 0)
            broken += _check(node, values, data_bytes, 1)
    return name, called, broken


def _called(node: _Node, depth: int) -> Iterator[str]:
    _check_depth(depth)
    yield node.op_type
    for inner in node.graphs:
        for _, content in _some(inner, (1,)):
            content = as_message(content)
            yield from _called(_node(content), depth + 1)


def _unfolded(name: str, calls: dict[str, list[str]], sizes: dict[str, int], depth: int) -> int:
    """Nodes of a function that does not call itself; functions of one name count as one."""
    _check_depth(depth)
    if name not in sizes:
        sizes[name] = sum(
            1 + (_unfolded(each, calls, sizes, depth + 1) if each in calls else 0) for each in calls[name]
        )
    return sizes[name]


def _reaches(start: str, goal: str, calls: dict[str, list[str]], seen: set[str]) -> bool:
    waiting = [start]
    while waiting:
        for name in calls.get(waiting.pop(), ()):
            if name == goal:
                return True
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise BundleError(f"nested more than {DEEPEST} deep")


def _graph(
    message: memoryview, outer: dict[str, _Value], data_bytes: Mapping[str, int], depth: int, times: int = 1
) -> Iterator[str]:
    """`times`: how often it is run where the graph around it runs once."""
    _check_depth(depth)
    values = dict(outer)
    for number, content in _some(message, (5, 11, 15)):
        content = as_message(content)
        if number == 15:
            yield from _spelled_out(content)
        elif number == 5:
            tensor = _tensor(content)
            yield from _stored(tensor, data_bytes)
            values[tensor.name] = _constant(tensor)
        else:
            name, shape = _input(content)
            values.setdefault(name, _Value(shape))
    nodes = [content for _, content in _some(message, (1,))]
    if len(nodes) > MOST_NODES:
        yield f"has {len(nodes)} nodes, expected at most {MOST_NODES}"
    for content in nodes:
        content = as_message(content)
        yield from _check(_node(content), values, data_bytes, depth, times)


def _check(
    node: _Node, values: dict[str, _Value], data_bytes: Mapping[str, int], depth: int, times: int = 1
) -> Iterator[str]:
    """The node's own faults; what is known of its outputs goes to `values`."""
    given = [values.get(name, _Value()) for name in node.inputs]
    if not node.domain and node.op_type in ("Loop", "Scan"):
        rounds = _rounds(node, given)
        if rounds is None:
            yield f"{node}: how often it goes round is not said in the graph"
        elif (times := times * max(1, rounds)) > MOST_ROUNDS:
            yield f"{node}: goes round {times} times, expected at most {MOST_ROUNDS}"
    if not node.domain and node.op_type in ("Div", "Mod") and len(given) == 2:
        yield from _quotient(node, *given)
    if (node.domain, node.op_type) in INDEXED:
        yield from _places(node, given)
    if node.value is not None:
        yield from _stored(node.value, data_bytes)
    for sparse in node.sparse:
        yield from _spelled_out(sparse)
    for inner in node.graphs:
        yield from _graph(inner, values, data_bytes, depth + 1, times)
    found = _made(node, given) if not node.domain else _Value()
    count = math.prod(found.shape) if found.shape is not None else 0
    if count > MOST_BYTES:
        yield f"{node}: makes at least {count} numbers, expected at most {MOST_BYTES}"
        found = _Value()
    for name in node.outputs:
        values[name] = found


def _rounds(node: _Node, given: list[_Value]) -> int | None:
    """A Scan goes along an axis: of the last input here, if that is known; None for a Loop that may have no end."""
    if node.op_type == "Scan":
        shape = given[-1].shape if given else None
        return shape[0] if shape else 1
    numbers = given[0].numbers if given and node.inputs[0] else None
    return numbers[0] if numbers and len(numbers) == 1 else None


def _quotient(node: _Node, dividend: _Value, divisor: _Value) -> Iterator[str]:
    """What ends a process on x86: a whole number divided by 0, and the smallest one by -1."""
    kind = divisor.kind or dividend.kind
    if divisor.numbers is None or kind not in SIGNED | UNSIGNED:
        return
    smallest = -(1 << (BITS.get(kind, 8) - 1))
    if 0 in divisor.numbers:
        yield f"{node}: divides whole numbers by 0"
    elif -1 in divisor.numbers and dividend.numbers is not None and smallest in dividend.numbers:
        yield f"{node}: divides {smallest} by -1, which no {kind} holds"


def _places(node: _Node, given: list[_Value]) -> Iterator[str]:
    """Constant places outside of what they are to be found in: a weight's shape is known, another value's is not."""
    which, where, axis, backwards = INDEXED[node.domain, node.op_type]
    numbers = given[which].numbers if which < len(given) else None
    if not numbers or where >= len(given):
        return
    shape = given[where].shape if given[where].kind else None
    axis = node.settings.get(axis, 0) if isinstance(axis, str) else axis
    size = MOST_BYTES if not shape else max(shape)
    if shape and axis is not None and -len(shape) <= axis < len(shape):
        size = shape[axis]
    lowest = -size if backwards else 0
    if wrong := [number for number in (min(numbers), max(numbers)) if not lowest <= number < size]:
        yield f"{node}: takes place {wrong[0]}, expected {lowest} to {size - 1}"


def _stored(tensor: _Tensor, data_bytes: Mapping[str, int]) -> Iterator[str]:
    """Weights have the bytes that their shape asks for, where they are said to lie."""
    needed = (math.prod(tensor.dims) * BITS.get(tensor.kind, 8) + 7) // 8
    if any(size < 0 for size in tensor.dims):
        yield f"weight {tensor.name!r}: shape {list(tensor.dims)}"
    elif "location" in tensor.entries:
        offset, length = (_place(tensor, key, default) for key, default in (("offset", 0), ("length", needed)))
        size = data_bytes.get(tensor.entries["location"], 0)
        if offset < 0 or length < 0 or offset + length > size:
            yield f"weight {tensor.name!r}: lies at bytes {offset} to {offset + length} of a file of {size}"
        elif length != needed and tensor.kind != "string":
            yield f"weight {tensor.name!r}: {length} bytes are stored, its shape {list(tensor.dims)} asks for {needed}"
    elif tensor.raw is not None and len(tensor.raw) != needed and tensor.kind != "string":
        yield f"weight {tensor.name!r}: holds {len(tensor.raw)} bytes, its shape {list(tensor.dims)} asks for {needed}"


def _place(tensor: _Tensor, key: str, default: int) -> int:
    """As libraries read it: Python would take other digits and strokes between them, too."""
    said = tensor.entries.get(key, str(default))
    if not PLAIN.fullmatch(said):
        raise BundleError(f"weight {tensor.name!r}: {key} is {said[:40]!r}, expected a whole number")
    return int(said)


def _spelled_out(sparse: memoryview) -> Iterator[str]:
    """Of a sparse tensor (SparseTensorProto), which a library makes a dense one: its name is that of its numbers."""
    name, dims = "", []
    for number, content in _some(sparse, (1, 3)):
        if number == 3:
            dims += _whole(content)
        else:
            name = _tensor(as_message(content)).name
    if any(size < 0 for size in dims) or math.prod(dims) > MOST_BYTES:
        yield f"sparse weight {name!r}: shape {dims}, expected at most {MOST_BYTES} numbers"


def _made(node: _Node, given: list[_Value]) -> _Value:
    """What is known of the node's output; numbers only where they say how large something gets."""
    shapes = [value.shape for value in given]
    numbers = [value.numbers for value in given]
    if node.op_type == "Constant" and node.value is not None:
        return _constant(node.value)
    if node.op_type in ("Identity", "Cast") and given:
        return _Value(shapes[0], numbers[0], given[0].kind if node.op_type == "Identity" else "")
    if node.op_type in SAME and given:
        return _Value(shapes[0])
    if node.op_type in SPREAD:
        return _Value(_spread([shape for shape in shapes if shape is not None]))
    if node.op_type == "ConstantOfShape" and numbers and numbers[0] is not None:
        return _Value(tuple(max(0, size) for size in numbers[0]))
    if node.op_type == "Expand" and len(given) > 1 and numbers[1] is not None:
        return _Value(_spread([shapes[0] or (), tuple(max(1, size) for size in numbers[1])]))
    if node.op_type == "Tile" and len(given) > 1 and shapes[0] is not None and numbers[1] is not None:
        return _Value(tuple(size * max(0, times) for size, times in zip(shapes[0], numbers[1])))
    if node.op_type == "Range" and len(given) > 2 and all(n and len(n) == 1 for n in numbers):
        start, end, step = (n[0] for n in numbers if n)
        return _Value((max(0, -(-(end - start) // step)),) if step else None)
    if node.op_type == "Concat" and shapes and all(shape is not None for shape in shapes):
        return _Value(_concatenated([shape for shape in shapes if shape is not None], node.settings.get("axis", 0)))
    return _Value()


def _spread(shapes: list[Shape]) -> Shape | None:
    """Broadcast; shapes that do not fit are the library's own to refuse."""
    if not shapes:
        return None
    rank = max(map(len, shapes))
    columns = zip(*([1] * (rank - len(shape)) + list(shape) for shape in shapes))
    return tuple(max(column) for column in columns)


def _concatenated(shapes: list[Shape], axis: int) -> Shape | None:
    rank = len(shapes[0])
    if not rank or any(len(shape) != rank for shape in shapes) or not -rank <= axis < rank:
        return None
    return tuple(
        sum(sizes) if place == axis % rank else max(sizes) for place, sizes in enumerate(zip(*shapes, strict=True))
    )


def _constant(tensor: _Tensor) -> _Value:
    code, numbers = (SIGNED | UNSIGNED).get(tensor.kind), None
    count = math.prod(tensor.dims)
    if code and 0 <= count <= MOST_NUMBERS:
        if tensor.raw is not None and len(tensor.raw) == count * struct.calcsize(f"<{code}"):
            numbers = struct.unpack(f"<{count}{code}", tensor.raw)
        elif tensor.raw is None and len(tensor.numbers) == count:
            numbers = tuple(tensor.numbers)
    return _Value(tensor.dims, numbers, tensor.kind)


def _node(message: memoryview) -> _Node:
    node = _Node()
    for number, content in fields(message):
        if number in (1, 2, 3, 4, 7):
            content = as_message(content)
            text = bytes(content).decode()
            if number == 1:
                node.inputs.append(text)
            elif number == 2:
                node.outputs.append(text)
            else:
                name = {3: "name", 4: "op_type", 7: "domain"}[number]
                setattr(node, name, "" if text == "ai.onnx" and number == 7 else text)
        elif number == 5:
            content = as_message(content)
            _attribute(content, node)
    return node


def _attribute(message: memoryview, node: _Node) -> None:
    name = ""
    for number, content in _some(message, (1, 3, 5, 6, 11, 22, 23)):
        if number == 1:
            content = as_message(content)
            name = bytes(content).decode()
        elif number == 3 and isinstance(content, int):
            node.settings[name] = _signed(content)
        elif number == 5 and isinstance(content, memoryview):
            node.value = _tensor(content)
        elif isinstance(content, memoryview) and number in (6, 11):
            node.graphs.append(content)
        elif isinstance(content, memoryview):
            node.sparse.append(content)


def _tensor(message: memoryview) -> _Tensor:
    tensor, dims = _Tensor(), []
    for number, content in _some(message, (1, 2, 5, 7, 8, 9, 13)):
        if number == 1:
            dims += _whole(content)
        elif number == 2 and isinstance(content, int):
            tensor.kind = TYPES.get(content, f"type {content}")
        elif number in (5, 7):
            tensor.numbers += _whole(content)
        elif isinstance(content, memoryview):
            if number == 8:
                tensor.name = bytes(content).decode()
            elif number == 9:
                tensor.raw = content
            elif number == 13:
                pair = dict(fields(content))
                key, value = (pair.get(place) for place in (1, 2))
                if isinstance(key, memoryview) and isinstance(value, memoryview):
                    tensor.entries[bytes(key).decode()] = bytes(value).decode()
    tensor.dims = tuple(dims)
    return tensor


def _whole(content: memoryview | int | None) -> list[int]:
    """Numbers of a repeated field, packed or one by one."""
    if isinstance(content, int):
        return [_signed(content)]
    numbers, at = [], 0
    view = content if content is not None and len(content) <= 10 * MOST_NUMBERS else memoryview(b"")
    while at < len(view):
        value = shift = 0
        while view[at] & 0x80:
            value |= (view[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        numbers.append(_signed(value | view[at] << shift))
        at += 1
    return numbers


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _input(message: memoryview) -> tuple[str, Shape | None]:
    """Name, and shape with 1 for every axis that has no number."""
    name, shape = "", None
    for number, content in _some(message, (1, 2)):
        content = as_message(content)
        if number == 1:
            name = bytes(content).decode()
            continue
        for _, tensor in _some(content, (1,)):
            for _, dims in _some(tensor, (2,)) if isinstance(tensor, memoryview) else ():
                shape = tuple(_axis(dim) for _, dim in _some(dims, (1,))) if isinstance(dims, memoryview) else None
    return name, shape


def _axis(message: memoryview | int | None) -> int:
    size = dict(fields(message)).get(1) if isinstance(message, memoryview) else None
    return max(1, _signed(size)) if isinstance(size, int) else 1
