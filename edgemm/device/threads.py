"""How many threads an engine gets, and whether they may spin while they wait for work.

A spinning thread answers faster and burns a core.  With other work on the same cores that turned 7 ms a token into 28,
so it is allowed only where this process has the machine to itself.  The load average tells of the last minute, so work
that has just ended is no reason: others have to be running now as well.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import UsageError

__all__ = ["ThreadPlan", "plan_threads"]

BUSY = 0.3  # load average, a core, above which somebody else is at work
LOOKS, PAUSE_S = 4, 0.002  # at what runs now; work that goes on is there each time


@dataclass(frozen=True)
class ThreadPlan:
    count: int
    spinning: bool
    why: str


def plan_threads(threads: int | None = None, root: Path = Path("/")) -> ThreadPlan:
    """`threads` as asked, or one a core that this process may use."""
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _cgroup_quota(root)
    usable = max(1, min(allowed, int(quota) if quota is not None else allowed))
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads}, expected 1 to 1024")
    count = threads or usable
    reasons = []
    if count > usable:
        reasons.append(f"{count} threads share {usable} cores")
    if allowed < cores or (quota is not None and quota < cores):
        reasons.append(f"this process may use {usable} of {cores} cores")
    busy = _load_average() / cores
    if busy > BUSY and _others_now(root) > BUSY * cores:
        reasons.append(f"the cores are {busy:.0%} busy already")
    return ThreadPlan(count, not reasons, "; ".join(reasons) or "no other work in sight")


def _cgroup_quota(root: Path) -> float | None:
    """Cores that a container may use (cgroup v2, then v1); None without a limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None


def _others_now(root: Path) -> float:
    """Tasks besides this one that run at this moment; infinitely many where nobody can tell."""
    fewest = float("inf")
    for look in range(LOOKS):
        try:
            running = (root / "proc/loadavg").read_text().split()[3].partition("/")[0]
            fewest = min(fewest, int(running) - 1)
        except (OSError, IndexError, ValueError):
            break
        if fewest <= 0:
            break
        if look + 1 < LOOKS:
            time.sleep(PAUSE_S)
    return fewest


def _load_average() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0
