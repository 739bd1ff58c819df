"""Work that is given to another process, so that a crash there, or memory or time without end, is an answer here.

`ask` puts a question to a fresh Python: drivers and their libraries may take a process down (a TensorRT runtime without
a driver does), and a peak of memory is only a process's own when it began there.  A module that answers prints one JSON
object as its last line.  For one Python object of what is short there is bundle/forked.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgemm
from edgemm.bundle.forked import signal_name
from edgemm.device.machine import read_fact

__all__ = [
    "Answer",
    "Watch",
    "ask",
    "device_bytes",
    "die_with_parent",
    "environment",
    "private_bytes",
    "python",
]

POLL_S = 0.03
PR_SET_PDEATHSIG = 1
# What -m does, but that would look for modules in the folder where one stands, too; Python 3.10 has no -P against it.
STARTS = (
    "import sys; sys.path[:1] = filter(None, sys.path[:1]); "
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
PARENT = "EDGEMM_PARENT"  # whose end is the child's


@dataclass(frozen=True)
class Answer:
    """A value, or the problem and its kind: "memory", "time", "crash", "refused" (it said no) or "start"."""

    value: dict[str, Any] | None
    problem: str = ""
    kind: str = ""


def ask(module: str, arguments: Sequence[str] = (), timeout_s: float = 60.0, memory_bytes: int | None = None) -> Answer:
    """Runs `python(module, arguments)`; whatever happens to it, an Answer comes back."""
    try:
        child = subprocess.Popen(
            python(module, *arguments),
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


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module.  Nothing is imported from the folder where one stands: a stranger's may hold
    a numpy.py beside its film."""
    return [sys.executable, "-c", STARTS, module, *arguments]


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
    found = re.search(r"^NvMapMemUsed:\s*(\d{1,15}) kB", read_fact(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
