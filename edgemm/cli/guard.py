"""A verb run in a process of its own, whose crash, or end of memory or time, becomes one line and an exit code.

Two reasons: the caller asked for limits (`--timeout`, `--max-memory`), or this process has one already (ulimit -v), and
libraries that get no memory end a process by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgemm.errors import BundleError, ResourceError, UsageError

if TYPE_CHECKING:
    import subprocess

__all__ = ["GUARDED", "add_limits", "is_capped", "run_guarded", "said_of_cap", "wanted"]

GUARDED = "EDGEMM_GUARDED"  # set for the process that is watched
POLL_S = 0.05
SCARCE_BYTES = 4 << 30  # of a control group: with more, a second process is not worth its milliseconds
GRACE_S = 10.0  # to take half-written files away
STUCK_S = 3.0  # of processor time
IDLE_S = 20.0  # without any
NOT_LINKED = 127  # how the dynamic linker ends a process where it gets no memory for a library
KILLED_FOR_MEMORY = (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)


def add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up, and leave nothing, after so long")
    parser.add_argument("--max-memory", metavar="SIZE", help="give up where it would take more: 2GiB, 512MiB")


def wanted(args: argparse.Namespace) -> bool:
    """Whether limits were asked for, and this is not yet the process that they hold for."""
    if args.timeout is not None and not args.timeout > 0:
        raise UsageError(f"timeout is {args.timeout:g}, expected more than 0 seconds")
    return (args.timeout is not None or args.max_memory is not None) and GUARDED not in os.environ


def memory_cap() -> int | None:
    """Bytes that this process may map, where somebody said so."""
    caps = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((cap for cap in caps if cap != resource.RLIM_INFINITY), default=None)


def is_capped() -> bool:
    """Whether this process may be ended for want of memory, so that another has to be asked what became of it."""
    return GUARDED not in os.environ and is_scarce()


def is_scarce() -> bool:
    return memory_cap() is not None or (_group_limit() or SCARCE_BYTES) < SCARCE_BYTES


def _group_limit() -> int | None:
    from edgemm.device.machine import memory_limit

    return memory_limit()


def said_of_cap() -> str:
    """What this process may take, for a line that says it was not enough; "" where nothing is known."""
    cap, group = memory_cap(), _group_limit()
    if cap is not None:
        return f"this process may take {cap >> 20} MiB (ulimit -v)"
    return f"its control group may take {group >> 20} MiB" if group is not None else ""


def run_guarded(words: Sequence[str], memory_bytes: int | None = None, timeout_s: float | None = None) -> int:
    """`edgemm words` in another process; its exit code.  Raises where it crashed or took too much."""
    import subprocess
    import tempfile

    from edgemm.device.child import environment, python

    with tempfile.TemporaryFile() as kept:  # what a library that dies says of itself is nobody's line
        shown = sys.stderr.isatty()
        child = subprocess.Popen(
            python("edgemm", *words),
            env={**environment(), GUARDED: "1"},
            stdout=None if _is_real(sys.stdout) else subprocess.PIPE,
            stderr=sys.stderr if shown else kept,
        )
        with _handing_on(child):
            reason, printed = _watched(child, memory_bytes, timeout_s)
        if printed:
            sys.stdout.write(printed.decode(errors="replace"))
        if reason == "time":
            raise ResourceError(f"--timeout {timeout_s:g} s ran out; nothing half-written was left")
        if reason == "memory":
            raise ResourceError(f"took more memory than --max-memory, {(memory_bytes or 0) >> 20} MiB")
        code = child.returncode
        if reason == "stuck" or (code == NOT_LINKED and is_scarce()):
            _tell_of_death(signal.SIGKILL)
        if code < 0:
            _tell_of_death(-code)
        kept.seek(0)
        sys.stderr.write(kept.read().decode(errors="replace"))
    return code


def _is_real(stream: object) -> bool:
    try:
        return stream.fileno() == 1  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, OSError):
        return False


def _tell_of_death(number: int) -> None:
    from edgemm.bundle.forked import signal_name

    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number == signal.SIGKILL or (is_scarce() and number in KILLED_FOR_MEMORY):
        raise ResourceError("; ".join(filter(None, ("out of memory: the process was ended", said_of_cap()))))
    raise BundleError(f"a library crashed on what it was given ({signal_name(number)})")


def _watched(
    child: subprocess.Popen[bytes], memory_bytes: int | None, timeout_s: float | None
) -> tuple[str, bytes | None]:
    """Why it was ended, or "", and what it printed where that is not on the screen already."""
    import subprocess

    from edgemm.device.child import private_bytes

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    reason, stuck = "", _Stuck(child.pid)
    while True:
        try:
            printed, _ = child.communicate(timeout=POLL_S)
            return reason, printed
        except subprocess.TimeoutExpired:
            pass
        if reason:
            continue
        if memory_bytes is not None and private_bytes(child.pid) > memory_bytes:
            reason = "memory"
        elif deadline is not None and time.monotonic() > deadline:
            reason = "time"
        elif stuck():
            reason = "stuck"
            child.kill()
        if reason:
            child.terminate()
            try:
                printed, _ = child.communicate(timeout=1.0 if reason == "memory" else GRACE_S)
                return reason, printed
            except subprocess.TimeoutExpired:
                child.kill()


class _Stuck:
    """Whether a process asks the kernel for memory again and again, and does nothing else: OpenBLAS has no other answer
    where it gets none.  It stands at its cap, and its time is the kernel's.  Or it stands there and does nothing:
    Python waits without end for a thread that began and had no memory."""

    NEAR_BYTES = 64 << 20  # what OpenBLAS wants at once
    LAST_BYTES = 1 << 20

    def __init__(self, pid: int) -> None:
        self._pid, self._cap, self._before = pid, memory_cap(), (0.0, 0.0)
        self._seen, self._since = (0.0, 0.0), time.monotonic()

    def __call__(self) -> bool:
        if self._cap is None:
            return False
        try:
            with open(f"/proc/{self._pid}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            return False
        own, kernel = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:13])
        if (own, kernel) != self._seen:
            self._seen, self._since = (own, kernel), time.monotonic()
        elif time.monotonic() - self._since > IDLE_S and int(fields[20]) > self._cap - self.LAST_BYTES:
            return True
        spent = own - self._before[0], kernel - self._before[1]
        if sum(spent) < STUCK_S:
            return False
        self._before = own, kernel
        return int(fields[20]) > self._cap - self.NEAR_BYTES and spent[1] > 2 * spent[0]


@contextlib.contextmanager
def _handing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals to this process reach the one that works; a terminal's Ctrl-C has reached both."""

    def hand_on(number: int, frame: object) -> None:
        child.send_signal(number)

    before = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.kill()
            child.wait()
