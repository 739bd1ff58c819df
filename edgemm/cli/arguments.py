"""Flags of options that are said once, in a dataclass; and the flags that every verb with a model shares."""

from __future__ import annotations

import argparse
import collections.abc
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar

from edgemm.cli.display import Display
from edgemm.errors import UsageError
from edgemm.options import flag_of, hint_of, options_of

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["OldFlag", "add_model_arguments", "add_options", "open_model", "read_backend", "read_options"]

T = TypeVar("T")


def add_options(parser: argparse._ActionsContainer, options: type, *names: str) -> None:
    """A flag for every field of an options dataclass (edgemm/options.py) that has one, or for those that are named.

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


class OldFlag(argparse.Action):
    """A flag by an old name: says so, and does what the new one does."""

    def __init__(self, option_strings: list[str], dest: str, now: argparse.Action) -> None:
        shape = {"nargs": now.nargs, "const": now.const, "type": now.type, "choices": now.choices}
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, **shape)
        self._now = now

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, said: str | None = None
    ) -> None:
        print(f"edgemm: {said} is now {self._now.option_strings[0]}", file=sys.stderr)
        self._now(parser, namespace, values, said)


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


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core that may be used")
    parser.add_argument(
        "--backend",
        metavar="COMPONENT=BACKEND,...",
        help="other libraries on the CPU, for example denoiser=openvino-bf16; one name alone is for all components",
    )
    parser.add_argument("--memory-limit-mb", type=float, metavar="MB", help="weights and conversations together")
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter, for bundles exported with --adapters")
    parser.add_argument(
        "--adapter-strength", type=float, metavar="S", help="how much of --adapter is added (default 1)"
    )
    parser.add_argument("--no-verify", action="store_true", help="trust the files: skip their hashes")
    parser.add_argument("--verbose", action="store_true", help="say what it runs on and how long it took, on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def open_model(args: argparse.Namespace) -> Model:
    import edgemm

    if args.adapter_strength is not None and not args.adapter:
        raise UsageError("--adapter-strength says how much of --adapter is added, and there is none")
    with Display():
        model = edgemm.load(
            args.bundle,
            device=args.device,
            threads=args.threads,
            verify=not args.no_verify,
            memory_limit_mb=args.memory_limit_mb,
            backend=read_backend(args.backend),
        )
    if args.adapter:
        model.load_adapter("adapter", args.adapter, 1.0 if args.adapter_strength is None else args.adapter_strength)
        model.set_adapter("adapter")
    if args.verbose:
        threads = model.threads
        spinning = "spinning" if threads.spinning else "not spinning"
        print(f"running on {model.choice}", file=sys.stderr)
        for component, choice in model.choices.items():
            if choice != model.choice:
                print(f"{component} on {choice}", file=sys.stderr)
        print(model.memory, file=sys.stderr)
        print(f"{threads.count} threads, {spinning}: {threads.why}", file=sys.stderr)
    return model


def read_backend(words: str | None) -> str | dict[str, str] | None:
    """`openvino` for all components, or `denoiser=openvino,image_decoder=openvino` for some."""
    if words is None or "=" not in words:
        return words
    pairs = [pair.partition("=") for pair in words.split(",")]
    return {component.strip(): backend.strip() for component, _, backend in pairs}
