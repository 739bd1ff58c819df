"""Work of others on this machine while something was measured: the kernel's count of busy cores, less our own.

    /proc/stat      cpu user nice system idle iowait irq softirq steal ...   in ticks since boot, all cores together

Time that a hypervisor gave to other guests (steal) counts too.  Linux only; elsewhere the reason is told.  psutil has
the same line and no root folder, from which recorded machines are read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import edgemm
from edgemm.bundle.bundle import Bundle
from edgemm.device.machine import read_board, read_count, read_fact, read_machine
from edgemm.device.targets import installed_version
from edgemm.runtimes.backend.engine import ThreadPlan
from edgemm.runtimes.engines import Choice

__all__ = [
    "BUSY_CORES",
    "CpuTimes",
    "other_cores",
    "read_cpu_times",
    "report_other_work",
    "tell_other_work",
    "ClockWatch",
    "commit",
    "machine_card",
    "make_card",
]

BUSY_CORES = 0.15  # more than a system's housekeeping


@dataclass(frozen=True)
class CpuTimes:
    """Seconds."""

    at: float  # of the clock that the caller measures with
    busy: float  # all cores since boot
    own: float  # of this process since it began


def read_cpu_times(at: float, root: Path = Path("/"), own: float | None = None) -> CpuTimes | None:
    """None where /proc/stat does not say."""
    first = read_fact(root / "proc/stat").partition("\n")[0].split()
    counts = [count for word in first[1:9] if (count := read_count(word)) is not None]
    if len(counts) < 8 or first[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = counts
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    mine = os.times()
    used = mine.user + mine.system + mine.children_user + mine.children_system if own is None else own
    return CpuTimes(at, (user + nice + system + irq + softirq + steal) / ticks, used)


def other_cores(before: CpuTimes, after: CpuTimes) -> float | None:
    """Cores that others kept busy, on average; None when no time passed."""
    elapsed = after.at - before.at
    if elapsed <= 0:
        return None
    return max((after.busy - before.busy - (after.own - before.own)) / elapsed, 0.0)


def report_other_work(before: CpuTimes | None, after: CpuTimes | None) -> tuple[dict[str, Any], list[str]]:
    """Plain values for the result, and warnings."""
    return tell_other_work(other_cores(before, after) if before and after else None)


def tell_other_work(cores: float | None) -> tuple[dict[str, Any], list[str]]:
    if cores is None:
        return {"cores": None, "reason": "no /proc/stat on this machine, or no time passed"}, []
    warning = (
        f"unstable: other work kept {cores:.2f} of this machine's {os.cpu_count() or 1} cores busy meanwhile; "
        "stop it and run again"
    )
    return {"cores": round(cores, 3), "reason": None}, [warning] if cores > BUSY_CORES else []


# Whether the clock can be believed: the one that times against the two that it should agree with.
#
# Everything is timed with the monotonic clock, which setting the date does not move.  A date that was set, a machine
# that slept, a virtual machine that was halted, and a gap that is not positive are told.

Clock = Callable[[], float]
ALLOWED_S = 0.25  # clocks are slewed, and are not read at the same moment
ALLOWED_SHARE = 0.01


def boot_time() -> float:
    """Counts while the machine sleeps; the monotonic clock does not.  Linux only, elsewhere the same clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ClockWatch:
    """`look()` now and then; then ask for `problems()`."""

    def __init__(self, timing: Clock = time.perf_counter, date: Clock = time.time, boot: Clock = boot_time) -> None:
        self._clocks = (timing, date, boot)
        self._looks: list[tuple[float, float, float]] = []
        self._backwards = 0

    def look(self) -> float:
        """The time of the clock that measures."""
        self._looks.append((self._clocks[0](), self._clocks[1](), self._clocks[2]()))
        return self._looks[-1][0]

    def refuse(self, gap: float) -> bool:
        """Whether a duration cannot be true; it is counted."""
        wrong = not 0 < gap < float("inf")
        self._backwards += wrong
        return wrong

    def problems(self) -> list[str]:
        found = []
        steps = list(pairwise(self._looks))
        dates = [jump for before, after in steps if (jump := _jump(before, after, 1))]
        sleeps = [jump for before, after in steps if (jump := _jump(before, after, 2)) and jump > 0]
        back = sum(after[0] < before[0] for before, after in steps)
        if sleeps:
            found.append(f"clock: the machine slept for {sum(sleeps):.1f} s in the middle of the measurement")
        elif dates:
            told = ", ".join(f"{jump:+.1f} s" for jump in dates[:3])
            found.append(f"clock: the date jumped ({told}) against the clock that measures; its own times stand")
        if back or self._backwards:
            found.append(
                f"clock: the clock that measures went backwards or stood still {back + self._backwards} times; "
                "those samples were left out"
            )
        return found


def _jump(before: tuple[float, float, float], after: tuple[float, float, float], other: int) -> float:
    """How much further the other clock went, or 0 when that is within what clocks may differ."""
    elapsed = after[0] - before[0]
    more = after[other] - before[other] - elapsed
    return more if abs(more) > ALLOWED_S + ALLOWED_SHARE * max(elapsed, 0.0) else 0.0


# What a measurement was made on and with: without it a number cannot be compared with another.

LIBRARIES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
)


def make_card(bundle: Bundle, choice: Choice, threads: ThreadPlan, root: str = "/") -> dict[str, Any]:
    """Plain values; null where something could not be read."""
    manifest = bundle.manifest
    chosen = manifest.targets[choice.target]
    return {
        "bundle": manifest.name,
        "bundle_sha256": hashlib.sha256(bundle.file("manifest.json").read_bytes()).hexdigest(),
        "family": manifest.family,
        "precision": {name: manifest.variant(name, choice.target).precision for name in chosen},
        "target": choice.target,
        "device": choice.device,
        "backend": f"{choice.backend} {choice.provider}",
        "threads": threads.count,
        "threads_spin": threads.spinning,  # answer faster, at the price of a busy core
        **machine_card(Path(root)),
    }


def machine_card(root: Path = Path("/")) -> dict[str, Any]:
    """The half of a card that any measurement has: machine, versions, commit."""
    machine, board = read_machine(root), read_board(root)
    versions = {name: installed_version(name) for name in LIBRARIES}
    return {
        "board": board.model if board else None,
        "power_mode": board.power_mode if board else machine.governor,
        "cpu": machine.cpu,
        "cores_usable": machine.cores_usable,
        "memory_bytes": machine.memory_bytes,
        "load_average": round(os.getloadavg()[0], 2),  # other work at the start; it slows all of this
        "system": machine.system,
        "python": machine.python,
        "versions": {name: version for name, version in versions.items() if version},
        "edgemm": edgemm.__version__,
        "commit": commit(Path(edgemm.__file__).parent),
    }


def commit(folder: Path) -> str | None:
    """Short hash of the checkout that holds `folder`, with "+" when files were changed; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
