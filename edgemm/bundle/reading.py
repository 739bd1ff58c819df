"""Reading what a stranger wrote: one context in which every failure becomes one line that names the file.

    with reading(path, "not a tokenizer.json"):
        inner = tokenizers.Tokenizer.from_str(text)

Parsing libraries share no base of errors, and one of them raises a panic that is no Exception at all.  In this context
all are the file's fault (exit 3), but a package that lacks (4) and memory, disk or time that ends (5); outside of it
only our own invariants are left, and those are bugs (1).  So is, inside of it too, what no file can cause, such as a name
that is not there, where a line of edgemm's own raised it.  It knows errors, never formats.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgemm.errors import EdgemmError, InputError, MissingError, ResourceError

__all__ = ["OF_CODE", "check_is_file", "read_text", "reading"]

MOST_SAID = 300  # characters of a library's own words
PANIC = "PanicException"  # of libraries written in Rust; a BaseException, made anew by each
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
OF_ANYBODY = (NameError, AssertionError)  # a bug of whose line raises it, whatever it was given
OF_CODE = (*OF_ANYBODY, AttributeError, TypeError)  # the same, of lines that handle a library's objects, not a document
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
    if isinstance(error, ImportError):
        return MissingError(f"{path}: {said}")
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        return ResourceError(f"{path}: out of memory")
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
