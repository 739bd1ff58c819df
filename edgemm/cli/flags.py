"""An options dataclass (options.py) as flags of a command line, and back; a load imports no argparse."""

from __future__ import annotations

import argparse
import collections.abc
import sys
import types
import typing
from typing import Any, TypeVar

from edgemm.options import flag_of, hint_of, options_of

__all__ = ["OldFlag", "Once", "OnceConst", "OnceYesOrNo", "add_options", "read_options"]

T = TypeVar("T")


def add_options(parser: argparse._ActionsContainer, options: type, *names: str) -> None:
    """A flag for every field of an options dataclass that has one, or for those that are named.

    The field's type says what the flag takes: a bool is a switch (--no-NAME where True is the default), a Sequence or
    tuple may be repeated, a Literal has choices.  A flag's old names work, with a line on stderr.
    """
    for name, (field, said) in options_of(options).items():
        flag = flag_of(name, said)
        if flag is None or (names and name not in names):
            continue
        if field.default is True and said.flag is True:
            flag = "--no-" + flag.removeprefix("--")
        how = {} if "type" in said.how else _how(hint_of(options, name), field.default)
        help = _with_default(said.help, field.default).replace("%", "%%")
        action = parser.add_argument(*flag.split(), dest=name, default=None, help=help, **how | said.how)
        for old in said.old:
            parser.add_argument("--" + old.replace("_", "-"), dest=name, action=OldFlag, now=action)


def read_options(args: argparse.Namespace, options: type[T], **more: Any) -> T:
    """The options that a command line gave, and the dataclass's own defaults; `more` are fields without a flag."""
    given = {name: getattr(args, name, None) for name in options_of(options)}
    return options(**{name: value for name, value in given.items() if value is not None} | more)


class Once(argparse._StoreAction):
    """A flag with one value: another one later on the line is refused, where argparse takes the last without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, said: str | None = None
    ) -> None:
        _check_once(self, parser, values, said)
        super().__call__(parser, namespace, values, said)


class OnceConst(argparse._StoreConstAction):
    """The same of a switch, which may contradict another flag: `-o csv --json`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, said: str | None = None
    ) -> None:
        _check_once(self, parser, self.const, said)
        super().__call__(parser, namespace, values, said)


class OnceYesOrNo(argparse.BooleanOptionalAction):
    """The same of `--x` and `--no-x`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, said: str | None = None
    ) -> None:
        _check_once(self, parser, not (said or "").startswith("--no-"), said)
        super().__call__(parser, namespace, values, said)


def _check_once(action: argparse.Action, parser: argparse.ArgumentParser, value: Any, said: str | None) -> None:
    given: dict[str, tuple[str, Any]] = getattr(parser, "given", {})  # of main.py's Parser
    before, first = given.setdefault(action.dest, (said or "", value))
    if said and before and value is not first and value != first:
        told = "given before" if said == before else f"{before} gave"
        raise argparse.ArgumentError(action, f"{value!s:.40}, where {told} {first!s:.40}; leave one of them out")


class OldFlag(argparse.Action):
    """A flag by an old name: says so, and does what the new one does."""

    def __init__(self, option_strings: list[str], dest: str, now: argparse.Action) -> None:
        shape = {"nargs": now.nargs, "const": now.const, "type": now.type, "choices": now.choices}
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, **shape)
        self._now = now

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, said: str | None = None
    ) -> None:
        now = self._now.option_strings[0]
        print(f"edgemm: {said} is now {now}", file=sys.stderr)
        self._now(parser, namespace, values, now)


def _how(hint: Any, default: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": "store_false" if default is True else "store_true"}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) in (collections.abc.Sequence, tuple):
        return {"action": "append", "type": typing.get_args(hint)[0]}
    return {"type": hint}


def _with_default(help: str, default: Any) -> str:
    plain = isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != ""
    said = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{help} (default {said})" if plain and "default" not in help else help
