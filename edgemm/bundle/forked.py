"""A copy of this process that makes one Python object: what a stranger's file would have it do ends there, if it must.

For what is short and no library with threads of its own; device/child.py asks a fresh Python.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edgemm.errors import InputError

__all__ = ["forked", "sendable", "signal_name"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def forked(work: Callable[[], T], what: str, memory_bytes: int = 1 << 28, timeout_s: float = 10.0) -> T:
    """What `work` gives, made in a copy of this process that may take so much more memory, and so long.

    Its error is raised here; `what` says of whom it is told that it took too much.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _answer(work, what, writer, memory_bytes)
    os.close(writer)
    try:
        told = _told(reader, time.monotonic() + timeout_s)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if told is None:
        raise InputError(f"{what}: took more than {timeout_s:g} s")
    try:
        good, value = pickle.loads(told)
    except Exception as error:
        how = signal_name(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "no answer"
        raise InputError(f"{what}: ended with {how}") from error
    if not good:
        raise value
    return value


def _answer(work: Callable[[], Any], what: str, writer: int, memory_bytes: int) -> NoReturn:
    """In the child, which never comes back from here."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what dies here complains to nobody
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this one
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hardest = resource.getrlimit(resource.RLIMIT_AS)
        limit = size + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hardest < 0 else min(limit, hardest), hardest))
        told = pickle.dumps((True, work()))
    except MemoryError:
        told = pickle.dumps((False, InputError(f"{what}: took more than {memory_bytes >> 20} MiB")))
    except BaseException as error:
        told = pickle.dumps((False, sendable(error, what)))
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(told)
    finally:
        os._exit(0)


def sendable(error: E, what: str) -> E | InputError:
    """The error as it is, where that can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        said = " ".join(str(error).split()) or type(error).__name__
        return InputError(f"{what}: {said}")


def _told(reader: int, deadline_s: float) -> bytes | None:
    """Everything that the child wrote; None where it was not done in time."""
    told = bytearray()
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return bytes(told)
        told += chunk


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
