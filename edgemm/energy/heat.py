"""Temperatures, and whether the machine slowed itself down: from the kernel's files, on Jetson and x86 alike.

    /sys/class/thermal/thermal_zone*/{type, temp (m°C)}         a zone that is off gives an error or -256000
    /sys/class/thermal/cooling_device*/{type, cur_state}        above 0 a clock is held down; fans are left out
    /sys/class/hwmon/hwmon*/oc*_event_cnt                       Jetson: over-current throttling, counted since boot
    /sys/devices/system/cpu/cpu*/thermal_throttle/*_count       x86: thermal throttling, counted since boot

Written from recorded layouts, not run on a device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.device.machine import read_fact
from edgemm.energy.sensor import read_number
from edgemm.errors import MissingError

__all__ = ["Heat", "read_heat", "report_heat"]

COLDEST_C = -100.0
HOLDS_A_CLOCK = re.compile(r"cpufreq|devfreq|throttle|^Processor$|^intel_powerclamp$", re.IGNORECASE)


@dataclass(frozen=True)
class Heat:
    zones_c: dict[str, float]
    held_down: dict[str, int]  # cooling device -> its state; 0 is full speed
    throttle_events: dict[str, int]  # since boot


def read_heat(root: Path = Path("/")) -> Heat:
    thermal = root / "sys/class/thermal"
    zones = {
        _name(folder, "type"): degrees / 1e3
        for folder in sorted(thermal.glob("thermal_zone*"), key=_number)
        if (degrees := _number_or_none(folder / "temp")) is not None and degrees / 1e3 > COLDEST_C
    }
    held = {
        _name(folder, "type"): state
        for folder in sorted(thermal.glob("cooling_device*"), key=_number)
        if HOLDS_A_CLOCK.search(read_fact(folder / "type"))
        and (state := _number_or_none(folder / "cur_state")) is not None
    }
    return Heat(zones, held, _events(root))


def report_heat(readings: Sequence[Heat]) -> dict[str, Any]:
    """Of readings in order of time; null where this machine says nothing."""
    first, last = (readings[0], readings[-1]) if readings else (None, None)
    zones = {
        name: {"first_c": degrees, "highest_c": max(heat.zones_c.get(name, degrees) for heat in readings)}
        for name, degrees in (first.zones_c if first else {}).items()
    }
    throttled = _throttling(readings)
    tells = first is not None and last is not None and (first.held_down or first.throttle_events)
    return {
        "zones": zones or None,
        "throttled": throttled if tells or throttled else None,
        "problems": _lost_zones(readings),
    }


def _throttling(readings: Sequence[Heat]) -> list[str]:
    found = []
    for name in sorted({name for heat in readings for name in heat.held_down}):
        highest = max(heat.held_down.get(name, 0) for heat in readings)
        if highest:
            found.append(f"{name} held a clock down (state {highest})")
    for name, before in readings[0].throttle_events.items() if readings else ():
        more = readings[-1].throttle_events.get(name, before) - before
        if more > 0:
            found.append(f"{name} counted {more} throttling events")
    return found


def _lost_zones(readings: Sequence[Heat]) -> list[str]:
    lost = sorted(
        {n for n in readings[0].zones_c if any(n not in heat.zones_c for heat in readings)} if readings else ()
    )
    return [f"thermal zones that could not be read all the time: {', '.join(lost)}"] if lost else []


def _events(root: Path) -> dict[str, int]:
    """x86 counts on every core: cores are added up, packages (each core shows its package's) are not."""
    found: dict[str, int] = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        count = _number_or_none(path)
        if count is not None:
            found[path.name.removesuffix("_event_cnt")] = count
    for kind, combine in (("core", lambda a, b: a + b), ("package", max)):
        for path in (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count"):
            count = _number_or_none(path)
            if count is not None:
                name = f"{kind} temperature"
                found[name] = combine(found[name], count) if name in found else count
    return found


def _name(folder: Path, file: str) -> str:
    """The type alone may stand on two folders (cpu-thermal, acpitz), so the number goes with it."""
    return f"{read_fact(folder / file) or 'unnamed'} {_number(folder)}"


def _number(folder: Path) -> int:
    found = re.search(r"\d+$", folder.name)
    return int(found.group()) if found else -1


def _number_or_none(path: Path) -> int | None:
    try:
        return read_number(path)
    except MissingError:
        return None
