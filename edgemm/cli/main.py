"""`edgemm VERB`: finds the verb, runs it, and turns every failure into one line and an exit code.

Only the chosen verb's module is imported.  A verb's module has add_arguments(parser) and run(args) -> int; exit codes
are those of errors.py, 130 after Ctrl-C, 141 when nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import importlib
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO, cast

import edgemm
from edgemm.cli.flags import Once, OnceConst, OnceYesOrNo
from edgemm.cli.guard import GUARDED, is_capped, is_scarce, run_guarded, said_of_cap, wanted
from edgemm.errors import EdgemmError, InputError, MissingError, ResourceError, UsageError, ran_out_of_memory, shortened
from edgemm.options import parse_bytes
from edgemm.progress import shown

__all__ = ["VERBS", "Verb", "main"]


@dataclass(frozen=True)
class Verb:
    module: str
    extra: str  # what pip install 'edgemm[EXTRA]' brings for it
    help: str


VERBS = {
    "data": Verb("edgemm.cli.data", "data", "build image-text sets with pinned hashes"),
    "train": Verb("edgemm.cli.train", "train", "train a checkpoint from a recipe; goes on where it was stopped"),
    "distill": Verb("edgemm.cli.distill", "train", "make a smaller student, or one that draws in few steps"),
    "finetune": Verb("edgemm.cli.finetune", "train", "teach a checkpoint a style or a topic with an adapter"),
    "merge": Verb("edgemm.cli.merge", "train", "merge an adapter into a copy of its checkpoint"),
    "join": Verb("edgemm.cli.join", "train", "a checkpoint that draws and one that reads, joined"),
    "trim": Verb("edgemm.cli.trim", "train", "a checkpoint with a smaller vocabulary"),
    "quantize": Verb(
        "edgemm.cli.quantize", "export", "decide how a checkpoint is quantized; reading and drawing apart"
    ),
    "export": Verb("edgemm.cli.export", "export", "checkpoint to bundle; fails when the bundle differs"),
    "verify": Verb("edgemm.cli.verify", "ort", "check a bundle: hashes, graphs, and what they compute"),
    "build": Verb("edgemm.cli.build", "tensorrt-rtx", "TensorRT engines of a bundle, for this device or for others"),
    "chat": Verb("edgemm.cli.chat", "ort", "ask a bundle, with pictures or without"),
    "draw": Verb("edgemm.cli.draw", "ort", "draw a picture with a bundle"),
    "serve": Verb("edgemm.cli.serve", "serve", "answer over HTTP, as OpenAI's interface does"),
    "inspect": Verb("edgemm.cli.inspect", "ort", "what is in a bundle"),
    "doctor": Verb("edgemm.cli.doctor", "ort", "what this machine can run and what to install"),
    "bench": Verb("edgemm.cli.bench", "ort", "latency, throughput and memory of a bundle"),
    "estimate": Verb("edgemm.cli.estimate", "export", "time and memory on a device that is not here"),
    "eval": Verb("edgemm.cli.eval", "train", "how well a bundle reads and draws"),
}

INTERRUPTED, PIPE_CLOSED = 130, 141
ESCAPED = "edgemm.escaped"
LARGEST_NUMBER = 1e38  # of any flag: beyond it, whole numbers are no floats
UNMAPPED = "cannot open shared object file"  # the linker's words for a library that there was no memory for, too
SIZE = re.compile(r"\d[\d.,]*\s*([KMGT]i?)?(B|bytes)\b|size \d+|allocate \d+")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Letters that an encoding lacks, as JSON spells them: a document stays the same document."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPED, _escaped)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises instead of printing its usage and leaving, and takes one value for one flag."""

    def __init__(self, *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        once = {None: Once, "store": Once, "store_const": OnceConst, argparse.BooleanOptionalAction: OnceYesOrNo}
        for kind, action in once.items():
            self.register("action", kind, action)
        self.given: dict[str, tuple[str, Any]] = {}  # flag's name in the namespace -> how it was spelled, and its value

    def parse_known_args(self, *given: Any, **how: Any) -> Any:
        self.given = {}
        return super().parse_known_args(*given, **how)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type is Path and not arg_string:  # an unset variable of a shell; Path("") would be where one stands
            raise argparse.ArgumentError(action, "an empty path")
        value = super()._get_value(action, arg_string)  # type: ignore[misc]
        if isinstance(value, (int, float)) and abs(value) > LARGEST_NUMBER:
            raise argparse.ArgumentError(action, f"{arg_string[:40]} is too large a number")
        return value


class _Terminal:
    """stdout, where names and replies of strangers send no commands to a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shown(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this; nobody reads it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # an encoding that lacks a letter is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)
    if argv is None and sys.stdout.isatty():
        sys.stdout = cast(Any, _Terminal(sys.stdout))
    if argv is None and not debug:
        _keep_stderr_for_words()
        if not sys.warnoptions:  # of libraries, to those who program with them
            warnings.simplefilter("ignore")
    if argv is None and GUARDED in os.environ:
        from edgemm.device.child import die_with_parent

        die_with_parent()
    heard: list[int] = []  # Ctrl-C, which a library that begins may turn into an error of its own
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(
            signal.SIGINT, lambda number, frame: (heard.append(number), signal.default_int_handler(number, frame))
        )
    try:
        code = run_guarded(words) if argv is None and is_capped() else _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # argparse after --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return PIPE_CLOSED
    except KeyboardInterrupt:
        if argv is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        return _fail("interrupted", INTERRUPTED, debug)
    except GeneratorExit:
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        message, code = ("interrupted", INTERRUPTED) if heard else _explain(error)
        return _fail(message, code, debug)
    finally:
        if argv is None:  # what is done is done: Python's own end hears no Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _keep_stderr_for_words() -> None:
    """What libraries write to the terminal by themselves (logs, panics) goes nowhere: sys.stderr alone is shown."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        shown = os.dup(sys.stderr.fileno())
        sys.stderr = os.fdopen(shown, "w", buffering=1, encoding=sys.stderr.encoding, errors=ESCAPED)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)


def _run(words: list[str]) -> int:
    if not words:
        print(_overview(), file=sys.stderr)
        return UsageError.exit_code
    if words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"edgemm {edgemm.__version__}")
        return 0
    name, verb = words[0], VERBS.get(words[0])
    if verb is None:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(VERBS)}"
        raise UsageError(f"unknown verb {name!r}; {hint}")
    try:
        module = _import(verb)
        parser = Parser(prog=f"edgemm {name}", description=getattr(module, "HELP", verb.help), allow_abbrev=False)
        module.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        args = parser.parse_args(_hyphenated(words[1:]))
        if hasattr(args, "max_memory") and name != "build" and wanted(args):
            limit = None if args.max_memory is None else parse_bytes(args.max_memory)
            return run_guarded(words, limit, args.timeout)
        return int(module.run(args))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgemm"):
            raise
        raise MissingError(f"`edgemm {name}` needs {error.name}: pip install 'edgemm[{verb.extra}]'") from error


def _import(verb: Verb) -> ModuleType:
    try:
        return importlib.import_module(verb.module)
    except ModuleNotFoundError as error:
        if error.name and verb.module.startswith(error.name):
            raise MissingError(f"this installation of edgemm has no {verb.module}: install a newer one") from error
        raise


def _hyphenated(words: list[str]) -> list[str]:
    """--max_new_tokens is --max-new-tokens; values, and what follows a bare --, stay as they are."""
    end = words.index("--") if "--" in words else len(words)
    changed = []
    for word in words[:end]:
        flag, equals, value = word.partition("=")
        changed.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else word)
    return changed + words[end:]


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: edgemm VERB ...\n\nUnified multimodal models, from training to the edge.\n\n"
        f"{verbs}\n\n`edgemm VERB --help` says what a verb takes; `edgemm --version` says which edgemm this is."
    )


def _explain(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for anything that can go wrong."""
    starved = isinstance(error, SystemError) and is_scarce()  # a library's own call that got none, and says nothing
    if starved or ran_out_of_memory(error):
        return _of_memory(error), ResourceError.exit_code
    if UNMAPPED in str(error) and is_scarce():
        return f"{error}; {said_of_cap()}", ResourceError.exit_code
    if isinstance(error, EdgemmError):
        return str(error), error.exit_code
    if type(error).__name__ == "PanicException":
        return f"a library gave up on what it was given: {error}", InputError.exit_code
    from edgemm.bundle.files import is_disk_full

    if is_disk_full(error):
        what = error.filename if isinstance(error, OSError) and error.errno else error
        return "the disk is full" + (f": {what}" if what else ""), ResourceError.exit_code
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", InputError.exit_code
    if isinstance(error, ValueError) and "null byte" in str(error):  # Python's word for any path with a NUL in it
        return "a path with a NUL byte in it: no file has such a name", InputError.exit_code
    return f"a bug: {type(error).__name__}: {error} (--debug shows where)", EdgemmError.exit_code


def _of_memory(error: BaseException) -> str:
    """What was asked for, where the library says it, and what this process may take."""
    said, may = str(error), said_of_cap()
    if not isinstance(error, ResourceError):
        said = f"out of memory: {said}" if SIZE.search(said) else "out of memory"
    return f"{said}; {may}" if may and may not in said else said


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = shown(shortened(" ".join(message.split())))
    with contextlib.suppress(OSError):  # stderr may be gone too
        print(f"edgemm: error: {line}" if code != INTERRUPTED else f"edgemm: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
