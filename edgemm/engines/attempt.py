"""One attempt at one engine: a child process, watched: its news told, its memory held under a cap, its time too.

The child is child.py.  What to do after a failed attempt is for builder.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from edgemm import progress
from edgemm.device.child import Watch, environment, signal_name

__all__ = ["Outcome", "attempt"]


@dataclass(frozen=True)
class Outcome:
    """A result, or the kind of the failure and what was said."""

    result: dict[str, Any] | None
    kind: str = ""  # "memory", "time", "disk", "refused", "attention", "crash", "other"
    text: str = ""
    peak_bytes: int = 0


def attempt(what: str, wish: dict[str, Any], memory_bytes: int, timeout_s: float) -> Outcome:
    """`what` is how the engine is called to whoever waits."""
    began_s = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgemm.engines.child"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    watch = Watch(child, memory_bytes, time.monotonic() + timeout_s)
    try:
        assert child.stdin and child.stdout
        _send(child, wish)
        said = _Drain(child)
        watch.start()
        last: dict[str, Any] = {}
        for line in child.stdout:
            last = _read(line) or last
            if "phase" in last:
                steps = f" {last['done']}/{last['of']}" if last["of"] > 1 else ""
                so_far = f"{time.monotonic() - began_s:.0f} s so far, at most {timeout_s:.0f} s an attempt"
                progress.status(f"{what}: {last['phase']}{steps}, {so_far}")
        child.wait()
    finally:
        child.kill()
        child.wait()
    return _outcome(last, watch, child.returncode, said.tail(), memory_bytes, timeout_s)


def _send(child: subprocess.Popen[str], wish: dict[str, Any]) -> None:
    assert child.stdin
    try:
        child.stdin.write(json.dumps(wish))
        child.stdin.close()
    except BrokenPipeError:
        pass  # it is gone already, and its exit says why


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _outcome(last: dict[str, Any], watch: Watch, code: int, said: str, memory_bytes: int, timeout_s: float) -> Outcome:
    peak = watch.peak_bytes
    if watch.reason == "memory":
        return Outcome(None, "memory", f"it grew past {_size(memory_bytes)}", peak)
    if watch.reason == "time":
        return Outcome(None, "time", f"it was not done after {timeout_s:.0f} s", peak)
    if "result" in last:
        return Outcome(last["result"], peak_bytes=peak)
    if "failure" in last:
        return Outcome(None, last["failure"]["kind"], last["failure"]["text"], peak)
    if code < 0:
        return Outcome(None, "crash", f"the builder crashed with {signal_name(-code)}", peak)
    return Outcome(None, "other", said or f"the builder ended with code {code}", peak)


class _Drain(threading.Thread):
    """Reads stderr to its end, so that a talkative library never blocks; keeps the last line."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.stream, self.last = child.stderr, ""
        self.start()

    def run(self) -> None:
        for line in self.stream or ():
            self.last = line.strip() or self.last

    def tail(self) -> str:
        self.join(timeout=5)
        return self.last


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
