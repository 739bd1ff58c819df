"""One line of NVIDIA's tegrastats as numbers.  Its fields come and go with board and release, so each may be missing.

A power is `now`, `now/average` or `now/average/...`: the first counts.  -256C stands for a sensor that is off.
Written from recorded lines, not run on a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Core", "TegraStats", "parse_line"]

COLDEST_C = -100.0  # below is no temperature but a sensor that is off


@dataclass(frozen=True)
class Core:
    load_percent: int
    frequency_mhz: int | None


@dataclass(frozen=True)
class TegraStats:
    """None stands for what the line does not say."""

    time: str | None  # as printed, in the board's own clock
    ram_used_mb: int
    ram_total_mb: int
    swap_used_mb: int | None
    swap_total_mb: int | None
    cores: tuple[Core | None, ...]  # None is a core that is off
    memory_load_percent: int | None  # EMC, the memory controller
    memory_mhz: int | None
    gpu_load_percent: int | None
    gpu_mhz: tuple[int, ...]  # one a cluster
    temperatures_c: dict[str, float]
    rails_w: dict[str, float]


def parse_line(line: str) -> TegraStats | None:
    """None when it is no line of tegrastats: a warning, an empty or a torn one."""
    ram = _numbers(r"\bRAM (\d+)/(\d+)MB", line)
    if ram[0] is None or ram[1] is None:
        return None
    swap = _numbers(r"\bSWAP (\d+)/(\d+)MB", line)
    memory = _numbers(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?", line)
    date = re.match(r"\s*(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)\b", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?", line)
    return TegraStats(
        time=date.group(1) if date else None,
        ram_used_mb=ram[0],
        ram_total_mb=ram[1],
        swap_used_mb=swap[0],
        swap_total_mb=swap[1],
        cores=_cores(line),
        memory_load_percent=memory[0],
        memory_mhz=memory[1],
        gpu_load_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        gpu_mhz=tuple(int(part) for part in (gpu.group(2) or "").split(",") if part) if gpu else (),
        temperatures_c=_temperatures(line),
        rails_w={name: int(mw) / 1e3 for name, mw in re.findall(r"(?<!\S)([A-Z]\w*) (-?\d+)mW(?![^/\s])", line)},
    )


def _numbers(pattern: str, line: str) -> tuple[int | None, int | None]:
    found = re.search(pattern, line)
    first, second = found.groups() if found else (None, None)
    return int(first) if first else None, int(second) if second else None


def _cores(line: str) -> tuple[Core | None, ...]:
    """`[15%@729,off]`, and the older `[15%,off]@729`."""
    found = re.search(r"\bCPU \[([^\]]*)\](?:@(\d+))?", line)
    if not found:
        return ()
    cores: list[Core | None] = []
    for text in found.group(1).split(","):
        core = re.fullmatch(r"(\d+)%(?:@(\d+))?", text.strip())
        frequency = (core.group(2) or found.group(2)) if core else None
        cores.append(Core(int(core.group(1)), int(frequency) if frequency else None) if core else None)
    return tuple(cores)


def _temperatures(line: str) -> dict[str, float]:
    found = {name: float(text) for name, text in re.findall(r"(?<!\S)([\w-]+)@(-?\d+(?:\.\d+)?)C\b", line)}
    return {name: degrees for name, degrees in found.items() if degrees > COLDEST_C}
