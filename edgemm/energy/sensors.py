"""The sensors that tell this machine's energy, and why the others are missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemm.device.board import read_board
from edgemm.device.machine import read_text
from edgemm.energy.ina3221 import open_ina3221
from edgemm.energy.nvml import open_nvml
from edgemm.energy.sensor import Sensor, read_number
from edgemm.energy.tegrastats import open_tegrastats
from edgemm.errors import MissingError

__all__ = ["Found", "find_sensors", "Counter", "open_rapl"]


@dataclass(frozen=True)
class Found:
    """The sensors cover different things, so their energies add up."""

    sensors: tuple[Sensor, ...]
    missing: dict[str, str]  # source -> why it is not among them


def find_sensors(device: str = "cpu", root: Path = Path("/")) -> Found:
    """A Jetson's rails hold processor and GPU; elsewhere each has its own sensor, asked when it does the work."""
    sensors: list[Sensor] = []
    missing: dict[str, str] = {}

    def attempt(source: str, open_sensor: Callable[[], Sensor]) -> bool:
        try:
            sensors.append(open_sensor())
        except MissingError as error:
            missing[source] = str(error)
        return source not in missing

    if read_board(root):
        if not attempt("INA3221", lambda: open_ina3221(root)):
            attempt("tegrastats", lambda: open_tegrastats(root))
        missing["NVML"] = "not supported on Jetson"
        return Found(tuple(sensors), missing)
    attempt("RAPL", lambda: open_rapl(root))
    if device != "cpu":
        attempt("NVML", open_nvml)
    return Found(tuple(sensors), missing)


# Energy of x86 processors by their own counters (RAPL), through the kernel's powercap files.
#
#     /sys/class/powercap/intel-rapl:0/{name, energy_uj, max_energy_range_uj};  subzones are intel-rapl:0:0, ...
#
# Packages and their memory count; cores and graphics are inside a package, and psys holds the packages again.  AMD's
# processors use the same names.  Written from recorded layouts, not run on a device.

ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")  # intel-rapl-mmio:0 is the same package seen a second time
COUNTED = re.compile(r"package-\d+|dram")


class Counter:
    """Joules of one zone since it was made.  Its register is narrow and begins anew after max_energy_range_uj."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "energy_uj"
        self._range = read_number(folder / "max_energy_range_uj")
        self._last = read_number(self._path)
        self._total = 0
        self._broken = ""

    def read(self) -> float:
        if self._broken:
            raise MissingError(self._broken)
        now = read_number(self._path)
        step = now - self._last
        if step < 0:
            step += self._range
            if not 0 <= step <= self._range // 2:  # read often enough a wrap-around is a small step: this was a reset
                self._broken = f"{self._path} went back from {self._last} to {now}, and not by wrapping around"
                raise MissingError(self._broken)
        self._last = now
        self._total += step
        return self._total / 1e6


def open_rapl(root: Path = Path("/")) -> Sensor:
    """Joules since now."""
    base = root / "sys/class/powercap"
    zones = [folder for folder in sorted(base.glob("intel-rapl:*")) if ZONE.fullmatch(folder.name)]
    counted = {folder: name for folder in zones if COUNTED.fullmatch(name := read_text(folder / "name"))}
    if not counted:
        raise MissingError(f"no RAPL counter of a package under {base}: none in this processor, kernel or container")
    try:
        counters = [Counter(folder) for folder in counted]
    except MissingError as error:
        if "permission denied" not in str(error):
            raise
        cure = f"until the next boot: sudo chmod a+r {base}/intel-rapl:*/energy_uj"
        raise MissingError(f"{error}; Linux lets root alone read it; {cure}") from None
    names = [_full_name(folder, name, base) for folder, name in counted.items()]
    return Sensor("RAPL", ", ".join(names), counts=True, read=lambda: sum(counter.read() for counter in counters))


def _full_name(folder: Path, name: str, base: Path) -> str:
    parent = read_text(base / folder.name.rpartition(":")[0] / "name")
    return f"{name} of {parent}" if name == "dram" and parent else name
