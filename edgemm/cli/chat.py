"""`edgemm chat BUNDLE`: one question, or a conversation on a terminal.

The reply goes to stdout as it comes, and nothing else does; remarks go to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgemm.bundle.files import reading
from edgemm.cli.draw import add_model_arguments, open_model
from edgemm.cli.flags import add_options, read_options
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.runtimes.text_call import TextOptions

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model
    from edgemm.runtimes.text_call import TextResult

__all__ = ["HELP", "add_arguments", "run"]

HELP = "ask a bundle, with pictures or without"
COMMANDS = "/image FILE adds a picture to the next message, /reset starts anew, /quit ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--prompt", help="the question; without it a conversation on a terminal, or stdin as the prompt"
    )
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--system", help="a system message")
    add_options(parser, TextOptions)


def run(args: argparse.Namespace) -> int:
    interactive = args.prompt is None and sys.stdin.isatty()
    if interactive and args.json:
        raise UsageError("--json needs --prompt")
    if interactive and args.video:
        raise UsageError("--video needs --prompt")
    prompt = args.prompt
    if prompt is None and not interactive:
        with reading("standard input"):
            prompt = sys.stdin.read().strip()
    with open_model(args) as model:
        messages: list[dict[str, Any]] = [{"role": "system", "content": args.system}] if args.system else []
        if interactive:
            return _converse(model, messages, args)
        messages.append({"role": "user", "content": prompt, "images": args.image})
        result = _reply(model, messages, args, (lambda text: None) if args.json else _show)
        if args.json:
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    return 0


def _reply(
    model: Model, messages: list[dict[str, Any]], args: argparse.Namespace, show: Callable[[str], None]
) -> TextResult:
    stream = model.stream_text(messages, **vars(read_options(args, TextOptions)))
    result = None
    for chunk in stream:
        show(chunk.text)
        result = chunk.result
    assert result is not None  # an error would have been raised
    if not args.json:
        _show("\n")
    if args.verbose:
        m = result.metrics
        print(
            f"{m.prompt_tokens} tokens read, {m.new_tokens} written, ended by {result.finish_reason}; "
            f"first token {m.time_to_first_token_ms:.0f} ms, then {m.decode_tokens_per_s:.1f} tokens/s",
            file=sys.stderr,
        )
    return result


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Tee:
    """Shows a text and keeps it."""

    def __init__(self, kept: list[str]) -> None:
        self.kept = kept

    def __call__(self, text: str) -> None:
        self.kept.append(text)
        _show(text)


def _converse(model: Model, before: list[dict[str, Any]], args: argparse.Namespace) -> int:
    """Reads lines until the end of input; Ctrl-C ends a reply, and at the prompt the conversation."""
    print(f"{model.manifest.name}: {COMMANDS}", file=sys.stderr)
    messages, images = list(before), list(args.image)
    while True:
        try:
            with reading("standard input"):
                line = input("> ").strip()
        except InputError as error:
            if isinstance(error.__cause__, EOFError):
                return 0
            raise
        if line == "/quit":
            return 0
        if line == "/reset":
            messages, images = list(before), []
        elif line.startswith("/image "):
            images.append(line.removeprefix("/image ").strip())
        elif line.startswith("/"):
            print(COMMANDS, file=sys.stderr)
        elif line:
            asked = [*messages, {"role": "user", "content": line, "images": images}]
            shown: list[str] = []
            try:
                _reply(model, asked, args, _Tee(shown))
            except EdgemmError as error:
                if messages == before and not isinstance(error, InputError):
                    raise  # a wrong flag, and nothing that would be lost
                print(f"edgemm: {error}", file=sys.stderr)
                images = []
                continue
            except KeyboardInterrupt:
                _show("\n")
            messages, images = [*asked, {"role": "assistant", "content": "".join(shown)}], []
