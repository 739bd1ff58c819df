"""The sensors that tell this machine's energy, and why the others are missing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import MissingError
from edgemm.measure.board import read_board
from edgemm.measure.energy.ina3221 import open_ina3221
from edgemm.measure.energy.nvml import Load, open_nvml
from edgemm.measure.energy.rapl import open_rapl
from edgemm.measure.energy.sensor import Sensor
from edgemm.measure.energy.tegrastats_stream import open_tegrastats

__all__ = ["Found", "find_sensors"]


@dataclass(frozen=True)
class Found:
    """The sensors cover different things, so their energies add up."""

    sensors: tuple[Sensor, ...]
    missing: dict[str, str]  # source -> why it is not among them


def find_sensors(device: str = "cpu", root: Path = Path("/"), load: Load = ctypes.CDLL) -> Found:
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
        attempt("NVML", lambda: open_nvml(load=load))
    return Found(tuple(sensors), missing)
