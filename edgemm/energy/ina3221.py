"""Power of a Jetson by its INA3221 (and, on the Thor kit, INA238) monitors, through the kernel's hwmon files.

    /sys/bus/i2c/devices/1-0040/hwmon/hwmon1/{name, in1_label, in1_input (mV), curr1_input (mA), ...}

The INA238 has no label but gives power1_input (uW).  Written from recorded layouts, not run on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edgemm.device.machine import read_text
from edgemm.energy.sensor import Sensor, read_number
from edgemm.errors import MissingError

__all__ = ["open_ina3221", "read_rails", "covers", "is_rail", "total_rails"]

CHANNELS = (1, 2, 3)  # inputs of an INA3221; what the driver numbers 4 to 7 are shunt voltages


def open_ina3221(root: Path = Path("/")) -> Sensor:
    """The total, in watts."""
    files = _rails(root)
    total = total_rails(files)
    if not total:
        raise MissingError(f"no INA3221 with labelled rails under {root / 'sys/bus/i2c/devices'}")

    def watts() -> float:
        return sum(files[name]() for name in total)

    watts()  # a rail that cannot be read is told now
    return Sensor("INA3221", covers(total), counts=False, read=watts)


def read_rails(root: Path = Path("/")) -> dict[str, float]:
    """Watts of every rail by its label."""
    return {name: read() for name, read in _rails(root).items()}


def _rails(root: Path) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    for folder in sorted((root / "sys/bus/i2c/devices").glob("*/hwmon/hwmon*")):
        chip = read_text(folder / "name")
        if chip == "ina238":
            found[read_text(folder / "in1_label") or "VIN"] = _microwatts(folder / "power1_input")
        for channel in CHANNELS if chip in ("ina3221", "") else ():
            label = read_text(folder / f"in{channel}_label")
            if is_rail(label):
                found[label] = _volts_times_amperes(folder, channel)
    return found


def _volts_times_amperes(folder: Path, channel: int) -> Callable[[], float]:
    volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
    return lambda: read_number(volts) * read_number(amperes) / 1e6  # mV * mA


def _microwatts(path: Path) -> Callable[[], float]:
    return lambda: read_number(path) / 1e6


# Which of a Jetson's power rails make its total: taken twice, a watt would count twice.
#
# Orin Nano and Orin NX measure the module's input, VDD_IN; the Thor kit measures its own, VIN.  AGX Orin has no such
# rail, so its module's rails are added up: that leaves out the carrier board and what the converters lose.

INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")  # any of them holds all others
CARRIER = "CVB_"  # rails of a carrier board (AGX Orin Industrial) feed the module's, so they are no part of a sum


def is_rail(label: str) -> bool:
    """False for inputs that are not connected, and for the INA3221's own sum."""
    return bool(label) and label != "NC" and not label.lower().startswith("sum of")


def total_rails(names: Iterable[str]) -> tuple[str, ...]:
    """Those whose sum is the total; empty when there is none."""
    found = [name for name in names if is_rail(name)]
    for name in INPUTS:
        if name in found:
            return (name,)
    return tuple(name for name in found if not name.startswith(CARRIER))


def covers(rails: tuple[str, ...]) -> str:
    if len(rails) == 1 and rails[0] in INPUTS:
        return f"{rails[0]}, the input of the {'kit' if rails[0] == 'VIN' else 'module'}"
    return f"sum of the rails {', '.join(rails)}"
