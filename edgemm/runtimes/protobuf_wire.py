"""The protobuf wire format, as far as reading ONNX graphs without the onnx package takes it: fields of one message.

Nothing is copied: contents are views of the file.  What a field means is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from edgemm.errors import BundleError

__all__ = ["fields"]

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
