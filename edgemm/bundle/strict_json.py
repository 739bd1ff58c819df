"""JSON to frozen dataclasses and back, by their type hints; every refusal names the field.

It knows types, never what a field means: see manifest.py.  Strict on purpose: an unknown field, a missing one, a number
for a string, a NaN, a field given twice are all refused: each is somebody's slip on its way to a device.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from typing import Any, TypeVar

from edgemm.errors import BundleError, InputError

__all__ = ["check_one_of", "check_range", "decode", "encode", "parse"]

T = TypeVar("T")
LONGEST_NUMBER = 40  # digits; 64 bits have 20
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a letter, perhaps
PLAIN = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def parse(text: str | bytes, where: str) -> dict[str, Any]:
    """JSON text to an object; NaN, Infinity and doubled fields are refused."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        document = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
            parse_float=_finite_number,
            object_pairs_hook=_object_without_doubles,
        )
        if SURROGATE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BundleError(f"{where}: not the JSON that was expected: nested too deep") from error
    except ValueError as error:
        raise BundleError(f"{where}: not the JSON that was expected: {error}") from error
    if not isinstance(document, dict):
        raise BundleError(f"{where}: holds {_kind(document)}, expected an object")
    return document


def decode(cls: type[T], value: Any, where: str) -> T:
    """`value` as an instance of the dataclass `cls`; `where` is the path of fields that led here."""
    return _decode(cls, value, where)


def encode(value: Any) -> Any:
    """The dataclass as plain lists, dicts, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: encode(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), where, "a list", value)
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) != len(arguments):
            raise BundleError(f"{where}: a list of {len(value)}, expected {len(arguments)} entries")
        return tuple(_decode(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(arguments, value)))
    if hint is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, PLAIN[float], value)
        _expect(abs(value) < float("inf"), where, "a finite number", value)
        return float(value)
    _expect(type(value) is hint, where, PLAIN.get(hint, "null"), value)
    return value


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    fields, hints = _fields_of(cls)
    prefix = "" if not where else f"{where}: " if where.endswith(".json") else f"{where}."
    for name in value:
        if name not in fields:
            raise BundleError(f"{prefix}{name}: unknown field, expected one of: {', '.join(fields)}")
    decoded = {}
    for name, item in fields.items():
        if name in value:
            decoded[name] = _decode(hints[name], value[name], f"{prefix}{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise BundleError(f"{prefix}{name}: missing")
    try:
        return cls(**decoded)
    except InputError as error:
        raise BundleError(f"{prefix}{error}") from error


@functools.cache  # evaluating the hints of a class takes longer than reading an object of it
def _fields_of(cls: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """A dataclass's fields and their types, by name."""
    return {item.name: item for item in dataclasses.fields(cls)}, typing.get_type_hints(cls)


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _decode(choices[0], value, where)
    expected = " or ".join(PLAIN[choice] for choice in choices)
    _expect(type(value) in choices, where, expected, value)
    return value


def _expect(good: bool, where: str, expected: str, value: Any) -> None:
    if not good:
        raise BundleError(f"{where}: {_kind(value)}, expected {expected}")


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    return "a list" if isinstance(value, list) else "an object"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite_number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:LONGEST_NUMBER]} is too large a number")
    return number


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"field {name!r} stands twice")
        found[name] = value
    return found


# What a field may hold: the checks that dataclasses make at birth.


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Both bounds are allowed; the message names the field."""
    if not low <= value <= high:
        raise BundleError(f"{name} is {value:g}, expected {low:g} to {high:g}")


def check_one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise BundleError(f"{name} is {value!r}, this edgemm knows: {', '.join(known)}")
