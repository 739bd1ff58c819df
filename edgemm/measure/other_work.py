"""Work of others on this machine while something was measured: the kernel's count of busy cores, less our own.

    /proc/stat      cpu user nice system idle iowait irq softirq steal ...   in ticks since boot, all cores together

Time that a hypervisor gave to other guests (steal) counts too.  Linux only; elsewhere the reason is told.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.measure.machine import read_text

__all__ = ["BUSY_CORES", "CpuTimes", "other_cores", "read_cpu_times", "report_other_work", "tell_other_work"]

BUSY_CORES = 0.15  # more than a system's housekeeping


@dataclass(frozen=True)
class CpuTimes:
    """Seconds."""

    at: float  # of the clock that the caller measures with
    busy: float  # all cores since boot
    own: float  # of this process since it began


def read_cpu_times(at: float, root: Path = Path("/"), own: float | None = None) -> CpuTimes | None:
    """None where /proc/stat does not say."""
    first = read_text(root / "proc/stat").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu" or not all(word.isdigit() for word in first[1:9]):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in first[1:9])
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
