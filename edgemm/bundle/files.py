"""The one boundary to the disk: a stranger's file is read, hashed and decoded, ours is written whole or not at all.

    with reading(path, "not a tokenizer.json"):
        inner = tokenizers.Tokenizer.from_str(text)

Parsing libraries share no base of errors, and one of them raises a panic that is no Exception at all.  In this context
all are the file's fault (exit 3), but a package that lacks (4) and memory, disk or time that ends (5); outside of it
only our own invariants are left, and those are bugs (1).  So is, inside of it too, what no file can cause, such as a
name that is not there, where a line of edgemm's own raised it.  It knows errors, bytes and types, never what a field
means.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import json
import math
import os
import re
import stat
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edgemm.bundle.beside import written_beside
from edgemm.errors import BundleError, EdgemmError, InputError, MissingError, ResourceError, ran_out_of_memory

__all__ = [
    "OF_ANYBODY",
    "OF_CODE",
    "check_is_file",
    "check_one_of",
    "check_range",
    "check_sizes",
    "decode",
    "encode",
    "is_disk_full",
    "library",
    "parse",
    "pillow",
    "read_result",
    "read_text",
    "reading",
    "write_whole",
]

MOST_SAID = 300  # characters of a library's own words
PANIC = "PanicException"  # of libraries written in Rust; a BaseException, made anew by each
OF_ANYBODY = (NameError, AssertionError)  # a bug of the line that raises it, whatever that was given
OF_CODE = (*OF_ANYBODY, AttributeError, TypeError)  # the same, of lines that handle a library's objects, no document
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ETIMEDOUT)


@contextmanager
def reading(
    path: str | os.PathLike[str],
    what: str = "cannot be read",
    kind: type[EdgemmError] = InputError,
    bugs: tuple[type[BaseException], ...] = OF_ANYBODY,
) -> Iterator[None]:
    """`what` says what the file fails at, `kind` is the error that most failures become; those of `bugs` that a line of
    edgemm raised pass as they are."""
    try:
        yield
    except BaseException as error:
        if type(error) is InputError and issubclass(kind, InputError):
            raise kind(str(error)) from error
        if isinstance(error, EdgemmError):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # Ctrl-C, and what ends a process or a generator
        if isinstance(error, bugs) and _raised_here(error):
            raise
        raise _as_ours(error, f"{os.fspath(path)!s}".replace("\0", "\\0"), what, kind) from error


def _raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(HERE)


def _as_ours(error: BaseException, path: str, what: str, kind: type[EdgemmError]) -> EdgemmError:
    what = what and f"{what}: "
    said = " ".join(str(error).split())[:MOST_SAID] or type(error).__name__
    if ran_out_of_memory(error):
        return ResourceError(f"{path}: out of memory{': ' + said if any(map(str.isdigit, said)) else ''}")
    if isinstance(error, ImportError):
        return MissingError(f"{path}: {said}")
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in NO_MORE):
        return ResourceError(f"{path}: {said}")
    if isinstance(error, OSError) and error.strerror:
        other = f" ({error.filename})" if error.filename and str(error.filename) != path else ""
        return kind(f"{path}: {what}{error.strerror}{other}")
    if isinstance(error, RecursionError):
        said = "nested too deep"
    elif isinstance(error, UnicodeDecodeError):
        said = f"not UTF-8: {said}"
    elif isinstance(error, (KeyError, IndexError, TypeError, AttributeError, AssertionError)):
        said = f"not what was expected ({type(error).__name__}: {said})"
    return kind(f"{path}: {what}{said}")


def check_is_file(path: str | os.PathLike[str], expected: str = "a file", kind: type[EdgemmError] = InputError) -> Path:
    """The path of a regular file; a pipe, a device or a socket, whose reader may wait for ever, is refused."""
    with reading(path, kind=kind):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise kind(f"{path}: not a file; expected {expected}")
    return Path(path)


def read_text(path: str | os.PathLike[str], expected: str = "a file", **how: Any) -> str:
    """All of a text file in UTF-8, with or without the mark that some editors put before it."""
    with reading(check_is_file(path, expected, **how), **how):
        return Path(path).read_text(encoding="utf-8-sig")


def library(name: str, lacking: str) -> Any:
    """A library that reads or writes files of some kind; `lacking` says what needs it, and how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(lacking) from error


def pillow() -> Any:
    """PIL.Image."""
    return library("PIL.Image", "pictures need Pillow: pip install 'edgemm[ort]'")


# A result on the disk: written whole or not at all, and read again.
#
# A disk that is full is told with the right exit code, and nothing half written is left: the caller still has the
# result.

FIELDS = ("card", "plan", "rows", "measured")


def is_disk_full(error: BaseException | None) -> bool:
    """Also of libraries that write tensors, which do not hand on errno."""
    numbered = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return numbered or (error is not None and "No space left on device" in str(error))


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Text is written in UTF-8; the folder that the file is to lie in has to be there."""
    target = Path(os.path.abspath(path))
    try:
        with written_beside(target) as temporary, open(temporary, "rb+") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, ValueError) as error:  # a name with a NUL in it, or half a letter, is a ValueError
        if is_disk_full(error):
            raise ResourceError(f"{target}: the disk is full; this file was not kept") from error
        raise InputError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def read_result(path: Path) -> dict[str, Any]:
    """The JSON document that `edgemm bench` printed: the whole file, or its last line."""
    text = read_text(path, "a result of `edgemm bench`").strip()
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            document = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and all(isinstance(document.get(field), dict) for field in FIELDS):
            return document
    raise InputError(f"{path}: its last line is not the JSON document that `edgemm bench` prints")


# JSON to frozen dataclasses and back, by their type hints; every refusal names the field.  Strict on purpose: an
# unknown field, a missing one, a number for a string, a NaN, a field given twice are all refused: each is somebody's
# slip on its way to a device.

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


def check_sizes(value: Any, where: str, most: Callable[[str], float], least: float = -math.inf, name: str = "") -> None:
    """InputError for a whole number of a JSON document out of bounds: who builds 10^12 layers never ends.

    `most` is told of a field's name, and of an infinite one where it counts nothing; a list's numbers go by its name.
    """
    if isinstance(value, dict):
        for key, each in value.items():
            check_sizes(each, f"{where}.{key}" if name else f"{where}: {key}", most, least, key)
    elif isinstance(value, list):
        for each in value:
            check_sizes(each, where, most, least, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        bound = most(name)
        if value > bound or (bound < math.inf and value < least):
            raise InputError(
                f"{where} is {value}, expected {f'{bound} at most' if value > bound else f'{least} or more'}"
            )


def check_one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise BundleError(f"{name} is {value!r}, this edgemm knows: {', '.join(known)}")
