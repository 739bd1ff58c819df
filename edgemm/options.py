"""Options said once: a frozen dataclass from which keyword arguments, flags, --help and the docs' tables are made.

    @dataclass(frozen=True)
    class TextOptions:
        max_new_tokens: int = option(128, "most tokens of the reply", metavar="N")
        prompt_lookup_num_tokens: int | None = option(None, "...", old=("guess_ahead",))

Keyword arguments become one by from_keywords, a command line by cli/flags.py, and from there it is passed whole.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import numbers
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from edgemm.errors import UsageError

__all__ = [
    "Option",
    "check_type",
    "flag_of",
    "from_keywords",
    "hint_of",
    "option",
    "options_of",
    "options_table",
    "parse_bytes",
    "parse_pairs",
]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field of an options dataclass says beside its name, type and default."""

    help: str
    flag: str | bool  # True: the field's name with hyphens; False: for programs alone; or "-n --number"
    old: tuple[str, ...]  # names it had before: accepted with a notice, as a keyword and as a flag
    how: dict[str, Any]  # for argparse, where the field's type does not say it: metavar, choices, type, nargs, const


def option(default: Any, help: str, *, flag: str | bool = True, old: tuple[str, ...] = (), **how: Any) -> Any:
    """A dataclass field with its default; the rest is what Option's fields say."""
    return dataclasses.field(default=default, metadata={"option": Option(help, flag, old, how)})


def options_of(options: type) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Every field made by option(), by its name."""
    fields = dataclasses.fields(cast(Any, options))
    return {field.name: (field, field.metadata["option"]) for field in fields if "option" in field.metadata}


def flag_of(name: str, said: Option) -> str | None:
    """`--max-new-tokens`; None for what a command line does not take."""
    if said.flag is False:
        return None
    return said.flag if isinstance(said.flag, str) else "--" + name.replace("_", "-")


def from_keywords(
    options: type[T], function: str, given: Mapping[str, Any], also: tuple[str, ...] = (), over: T | None = None
) -> T:
    """The keyword arguments of a public function as its options; a wrong name is a UsageError with the nearest one.

    `function` is what was called, as "generate_text()"; `also` are names of its other arguments, which may have been
    meant; what is not given is as in `over`, where there is one.  Call it there and nowhere deeper: the
    DeprecationWarning of an old name points to that function's caller.
    """
    known = [field.name for field in dataclasses.fields(cast(Any, options))]
    renamed = {old: name for name, (_, said) in options_of(options).items() for old in said.old}
    found: dict[str, Any] = {}
    for said, value in given.items():
        name = renamed.get(said, said)
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, [*known, *also], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}"
            raise UsageError(f"{function} has no option {said!r}; {hint}")
        if name in found:
            raise UsageError(f"{function} was given {name!r} twice, once by an old name")
        if name != said:
            warnings.warn(f"{function}: {said!r} is now {name!r}", DeprecationWarning, stacklevel=3)
        _check(options, name, value)
        found[name] = value
    return options(**found) if over is None else dataclasses.replace(cast(Any, over), **found)


NUMBERS = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}


def _check(options: type, name: str, value: Any) -> None:
    hint = hint_of(options, name)
    if hint is not None:
        check_type(name, value, hint)


def check_type(name: str, value: Any, hint: Any) -> None:
    """UsageError where a value is of another type than it should be; numpy's numbers are numbers, True is none."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not any(_is_a(choice, value) for choice in choices):
        raise UsageError(f"{name} is {value!r:.60}, expected {' or '.join(map(_in_words, choices))}")


def _is_a(hint: Any, value: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind is Any:
        return True
    if kind is typing.Literal:
        return value in typing.get_args(hint)
    if kind in NUMBERS:
        said = isinstance(value, NUMBERS[kind][0]) and not isinstance(value, bool)
        return said and (kind is int or _is_float(value))
    if kind in (tuple, list, collections.abc.Sequence):
        inside = typing.get_args(hint)[:1]
        listed = isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes))
        return listed and all(_is_a(each, item) for each in inside for item in value)
    if kind is Path:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, kind) if isinstance(kind, type) else True


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return True


def _in_words(hint: Any) -> str:
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if kind in (tuple, list, collections.abc.Sequence):
        return "a list of strings" if typing.get_args(hint)[:1] == (str,) else "a list"
    words = {str: "a string", bool: "True or False", type(None): "None", Path: "a path", os.PathLike: "a path"}
    words[collections.abc.Mapping] = "an object"
    return NUMBERS[kind][1] if kind in NUMBERS else words.get(kind) or getattr(kind, "__name__", str(kind))


@functools.cache
def hint_of(options: type, name: str) -> Any:
    """The type of one field; None where it names what is imported for type checkers alone."""
    owner = next(each for each in options.__mro__ if name in vars(each).get("__annotations__", {}))
    holder = types.SimpleNamespace(__annotations__={name: owner.__annotations__[name]})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[owner.__module__]))[name]
    except NameError:
        return None


def options_table(options: type) -> str:
    """The options in Markdown, for docs/: a test holds each page's table to it."""
    rows = ["| keyword | flag | default | |", "|---|---|---|---|"]
    for name, (field, said) in options_of(options).items():
        flag = flag_of(name, said)
        rows.append(f"| `{name}` | {f'`{flag}`' if flag else ''} | `{field.default!r}` | {said.help} |")
    return "\n".join(rows)


def parse_pairs(flag: str, words: str) -> dict[str, str]:
    """`a=x,b=y` as {"a": "x", "b": "y"}; UsageError of a name that stands there twice, or that has no value."""
    found: dict[str, str] = {}
    for pair in words.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or name in found:
            wrong = f"names {name} twice" if name in found else f"is {words!r}, expected NAME=VALUE,..."
            raise UsageError(f"{flag} {wrong}")
        found[name] = value
    return found


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_bytes(text: str) -> int:
    """2GiB, 512MB, 100000: always powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(float(found.group(1)) * UNITS[found.group(2).upper()]) if found else 0
    if size < 1:
        raise UsageError(f"size is {text!r}, expected for example 2GiB or 512MiB")
    return size
