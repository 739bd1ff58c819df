"""What this machine gives a process: cores, memory, disk, and the names that belong on a report.

In a container the machine is larger than what may be used, so affinity and control groups are read too.  Every reader
takes a root folder, so recorded layouts can be read anywhere.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgemm.measure.cpu import cpu_features, cpu_model

__all__ = ["Machine", "read_machine", "read_text"]

NO_LIMIT_BYTES = 2**60  # control groups v1 write "no limit" as a number near 2**63


@dataclass(frozen=True)
class Machine:
    """None stands for what could not be read."""

    system: str  # kernel and architecture
    distribution: str | None
    python: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int  # in the machine
    cores_usable: float  # left by affinity and control groups; 1.5 is a quota of one core and a half
    memory_bytes: int | None  # of the machine
    memory_limit_bytes: int | None  # of this process's control group; None when it has none
    memory_available_bytes: int | None
    disk_free_bytes: int | None  # where the bundle is, or here
    governor: str | None = None  # of the cores' clocks: "performance", "schedutil"; a guest often is not told


def read_machine(root: Path = Path("/"), disk: Path = Path(".")) -> Machine:
    cpuinfo = read_text(root / "proc/cpuinfo")
    memory = _meminfo(read_text(root / "proc/meminfo"))
    limit = _memory_limit(root)
    available = memory.get("MemAvailable")
    if limit is not None and available is not None:
        available = min(available, limit)
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        distribution=_distribution(read_text(root / "etc/os-release")),
        python=platform.python_version(),
        cpu=cpu_model(cpuinfo),
        cpu_features=cpu_features(cpuinfo),
        cores=cores,
        cores_usable=min(_allowed_cores() if root == Path("/") else cores, _core_quota(root) or cores),
        memory_bytes=memory.get("MemTotal"),
        memory_limit_bytes=limit,
        memory_available_bytes=available,
        disk_free_bytes=_disk_free(disk),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
    )


def read_text(path: Path) -> str:
    """The file's text without NUL bytes; "" when it cannot be read, because no such file is an answer too."""
    try:
        return path.read_bytes().replace(b"\0", b"\n").decode(errors="replace").strip()
    except OSError:
        return ""


def _allowed_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _control_groups(root: Path) -> list[Path]:
    """This process's group and its ancestors: a quota on any of them binds."""
    base = root / "sys/fs/cgroup"
    found = re.search(r"^0::/(.*)$", read_text(root / "proc/self/cgroup"), re.MULTILINE)
    group = base / (found.group(1) if found and ".." not in found.group(1) else "")
    return [folder for folder in (group, *group.parents) if folder == base or base in folder.parents]


def _core_quota(root: Path) -> float | None:
    quotas = []
    for folder in _control_groups(root):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    quota, period = (read_text(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota.isdigit() and period.isdigit():  # "-1" is no quota
        quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> int | None:
    texts = [read_text(folder / "memory.max") for folder in _control_groups(root)]
    texts.append(read_text(root / "sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min((int(text) for text in texts if text.isdigit() and int(text) < NO_LIMIT_BYTES), default=None)


def _meminfo(text: str) -> dict[str, int]:
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _distribution(os_release: str) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?', os_release, re.MULTILINE)
    return found.group(1) if found else None


def _disk_free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
