"""What a sensor is to everything that samples one; and how a number is read from a file of the kernel.

A sensor that is not there, may not be read or says nonsense raises MissingError with the reason.  Never 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.device.gpu import gpu_uuid
from edgemm.device.machine import read_fact, read_plain
from edgemm.errors import MissingError

__all__ = [
    "Counter",
    "open_rapl",
    "Sensor",
    "THROTTLE_REASONS",
    "covers",
    "is_rail",
    "memory_used_bytes",
    "open_ina3221",
    "open_nvml",
    "read_number",
    "read_rails",
    "throttle_reasons",
    "total_rails",
]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Sensor:
    source: str  # "INA3221", "tegrastats", "RAPL", "NVML"
    covers: str  # what its energy is the energy of
    counts: bool  # True: `read` gives joules since some beginning; False: it gives watts
    read: Callable[[], float]
    close: Callable[[], None] = _nothing


def read_number(path: Path) -> int:
    try:
        text = read_plain(path).decode().strip()
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist") from None
    except PermissionError:
        raise MissingError(f"{path} may not be read by this user: permission denied") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path} cannot be read: {reason}") from error
    if not re.fullmatch("-?[0-9]{1,19}", text):
        raise MissingError(f"{path} holds {text[:40]!r}, expected a number")
    return int(text)


# Power of a Jetson by its INA3221 (and, on the Thor kit, INA238) monitors, through the kernel's hwmon files.
#
#     /sys/bus/i2c/devices/1-0040/hwmon/hwmon1/{name, in1_label, in1_input (mV), curr1_input (mA), ...}
#
# The INA238 has no label but gives power1_input (uW).  Written from recorded layouts, not run on a device.

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
        chip = read_fact(folder / "name")
        if chip == "ina238":
            found[read_fact(folder / "in1_label") or "VIN"] = _microwatts(folder / "power1_input")
        for channel in CHANNELS if chip in ("ina3221", "") else ():
            label = read_fact(folder / f"in{channel}_label")
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


# Energy of NVIDIA's graphics cards by NVML, the driver's own library, through NVIDIA's bindings (nvidia-ml-py).
#
# Cards since Volta count their energy; older ones say their power.  Jetsons have the library, but it answers "not
# supported" to both.  Tested with a library of paper below the bindings, not run on a device.

# nvmlClocksThrottleReasons*: those that slow work down against the user's wish
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat, by the driver",
    0x40: "heat, by the hardware",
    0x80: "power brake",
}


def open_nvml(number: int = 0) -> Sensor:
    """Of CUDA's GPU of that number: joules since the driver was loaded, or watts where there is no counter."""
    card = _card(number)
    covers = f"GPU {number} with its memory ({_ask('nvmlDeviceGetName', card) or 'unnamed'})"

    def joules() -> float:
        return _ask("nvmlDeviceGetTotalEnergyConsumption", card) / 1e3  # mJ

    def watts() -> float:
        return _ask("nvmlDeviceGetPowerUsage", card) / 1e3  # mW

    try:
        joules()
        counts = True
    except MissingError:
        watts()  # neither: this is the reason that is told
        counts = False
    return Sensor("NVML", covers, counts, joules if counts else watts)


def throttle_reasons(number: int = 0) -> tuple[str, ...]:
    """Why the card runs slower than it could, now; empty when it does not."""
    bits = _ask("nvmlDeviceGetCurrentClocksThrottleReasons", _card(number))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


def memory_used_bytes(number: int = 0) -> int:
    """What the whole card's memory holds now, other programs' share included."""
    return int(_ask("nvmlDeviceGetMemoryInfo", _card(number)).used)


def _card(number: int) -> Any:
    """By UUID, because NVML counts by PCI bus and CUDA from the fastest on."""
    _ask("nvmlInit")
    uuid = gpu_uuid(number)
    return _ask("nvmlDeviceGetHandleByUUID", uuid) if uuid else _ask("nvmlDeviceGetHandleByIndex", number)


def _ask(function: str, *arguments: Any) -> Any:
    try:
        import pynvml
    except ImportError:
        raise MissingError("NVIDIA's cards are read by nvidia-ml-py: pip install 'edgemm[energy]'") from None
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError_LibraryNotFound:  # type: ignore[attr-defined]  # the bindings make these classes as they load
        raise MissingError("no libnvidia-ml.so.1 on this machine: it comes with NVIDIA's driver") from None
    except pynvml.NVMLError_FunctionNotFound:  # type: ignore[attr-defined]
        raise MissingError(f"NVIDIA's driver has no {function}: it is too old") from None
    except pynvml.NVMLError_NotSupported:  # type: ignore[attr-defined]
        told = f"{function}: NVML says not supported on this GPU; a Jetson's power is in its INA3221"
        raise MissingError(told) from None
    except pynvml.NVMLError as error:
        raise MissingError(f"{function} returns {error.value}: {error}") from None  # type: ignore[attr-defined]


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
    counted = {folder: name for folder in zones if COUNTED.fullmatch(name := read_fact(folder / "name"))}
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
    parent = read_fact(base / folder.name.rpartition(":")[0] / "name")
    return f"{name} of {parent}" if name == "dram" and parent else name
