"""The smallest ONNX model that proves a backend works: y = x @ x, written as bytes by hand.

The doctor runs where the onnx package is not installed, so the few protobuf fields that are needed are written here.
Field numbers are those of onnx.proto.
"""

from __future__ import annotations

__all__ = ["OLDEST_OPSET", "SIDE", "one_integer_node_model", "one_node_model"]

SIDE = 4
IR_VERSION, OLDEST_OPSET = 8, 13  # old enough for every runtime that edgemm meets
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType


def one_node_model(opset: int = OLDEST_OPSET, side: int = SIDE) -> bytes:
    """ModelProto with input x and output y, both float32 (side, side)."""
    return _model("MatMul", {"x": FLOAT}, ("x", "x"), FLOAT, opset, side)


def one_integer_node_model(side: int = SIDE) -> bytes:
    """y = x @ w, uint8 times int8 added up in int32, all (side, side)."""
    return _model("MatMulInteger", {"x": UINT8, "w": INT8}, ("x", "w"), INT32, OLDEST_OPSET, side)


def _model(operator: str, inputs: dict[str, int], taken: tuple[str, ...], output: int, opset: int, side: int) -> bytes:
    node = b"".join(_text(1, name) for name in taken) + _text(2, "y") + _text(4, operator)
    given = b"".join(_bytes(11, _value(name, kind, side)) for name, kind in inputs.items())
    graph = _bytes(1, node) + _text(2, "one_node") + given + _bytes(12, _value("y", output, side))
    operators = _text(1, "") + _number(2, opset)
    return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, operators)


def _value(name: str, kind: int, side: int) -> bytes:
    """ValueInfoProto: a name, and a tensor type with its element type and its shape."""
    length = _bytes(1, _number(1, side))
    tensor = _number(1, kind) + _bytes(2, length + length)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
