"""Work that is given to another process, so that a crash there, or memory or time without end, is an answer here.

`ask` puts a question to a fresh Python: drivers and their libraries may take a process down (a TensorRT runtime without
a driver does), and a peak of memory is only a process's own when it began there.  A module that answers prints one JSON
object as its last line.  `forked` lets a copy of this process make one Python object: for what is short and no library
with threads of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import edgemm
from edgemm.device.machine import read_text
from edgemm.errors import InputError

__all__ = [
    "Answer",
    "Watch",
    "ask",
    "device_bytes",
    "die_with_parent",
    "environment",
    "forked",
    "private_bytes",
    "signal_name",
]

T = TypeVar("T")
POLL_S = 0.03
PR_SET_PDEATHSIG = 1
PARENT = "EDGEMM_PARENT"  # whose end is the child's


@dataclass(frozen=True)
class Answer:
    """A value, or the problem and its kind: "memory", "time", "crash", "refused" (it said no) or "start"."""

    value: dict[str, Any] | None
    problem: str = ""
    kind: str = ""


def ask(module: str, arguments: Sequence[str] = (), timeout_s: float = 60.0, memory_bytes: int | None = None) -> Answer:
    """Runs `python -m module arguments`; whatever happens to it, an Answer comes back."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return Answer(None, f"could not start a process: {error}", "start")
    watch = Watch(child, memory_bytes, time.monotonic() + timeout_s)
    try:
        watch.start()
        printed, complained = child.communicate()
    finally:
        child.kill()
        child.wait()
    if watch.reason == "time":
        return Answer(None, f"gave no answer within {timeout_s:g} s", "time")
    if watch.reason == "memory":
        return Answer(None, f"grew past {(memory_bytes or 0) >> 20} MiB of memory", "memory")
    if child.returncode < 0:
        return Answer(None, f"crashed with {signal_name(-child.returncode)}", "crash")
    try:
        value = json.loads(printed.strip().splitlines()[-1])
    except (IndexError, ValueError):
        value = None
    if child.returncode or not isinstance(value, dict):
        said = complained.strip().splitlines() or ["it said nothing"]
        return Answer(None, f"ended with code {child.returncode}: {said[-1]}", "refused")
    return Answer(value)


def environment() -> dict[str, str]:
    """In which a child finds this edgemm, and dies with this process if it asks to (die_with_parent)."""
    package_root = str(Path(edgemm.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Called by the child: work that nobody waits for would hold its memory for minutes."""
    parent = os.environ.pop(PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)


class Watch(threading.Thread):
    """Kills a child when it grows or lasts too long, and remembers which; None is no limit."""

    def __init__(
        self,
        child: subprocess.Popen[Any],
        memory_bytes: int | None,
        deadline_s: float,
        elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """`elsewhere` tells of memory that no process owns; what is new of it counts as the child's."""
        super().__init__(daemon=True)
        self._elsewhere, self._before = elsewhere, elsewhere()
        self.child, self.memory_bytes, self.deadline_s = child, memory_bytes, deadline_s
        self.reason, self.peak_bytes = "", 0

    def run(self) -> None:
        while self.child.poll() is None:
            used = private_bytes(self.child.pid) + max(0, self._elsewhere() - self._before)
            self.peak_bytes = max(self.peak_bytes, used)
            if self.memory_bytes is not None and used > self.memory_bytes:
                self.reason = "memory"
            elif time.monotonic() > self.deadline_s:
                self.reason = "time"
            if self.reason:
                self.child.kill()
                return
            time.sleep(POLL_S)


def private_bytes(pid: int) -> int:
    """Memory that is the process's own: libraries mapped from disk do not count, they can be dropped."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    rows = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return sum(int(rows[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in rows)


def device_bytes(root: Path = Path("/")) -> int:
    """What a Jetson's GPU holds of the memory that both share; NVIDIA's CUDA for Tegra guide names the field, other
    machines have none."""
    found = re.search(r"^NvMapMemUsed:\s*(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# A copy of this process, for one object.


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
        told = _pickled(error, what)
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(told)
    finally:
        os._exit(0)


def _pickled(error: BaseException, what: str) -> bytes:
    """The error as it is, where that can be sent."""
    try:
        told = pickle.dumps((False, error))
        pickle.loads(told)
        return told
    except Exception:
        said = " ".join(str(error).split()) or type(error).__name__
        return pickle.dumps((False, InputError(f"{what}: {said}")))


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
