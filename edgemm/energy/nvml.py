"""Energy of NVIDIA's graphics cards by NVML, the driver's own library, through NVIDIA's bindings (nvidia-ml-py).

Cards since Volta count their energy; older ones say their power.  Jetsons have the library, but it answers "not
supported" to both.  Tested with a library of paper below the bindings, not run on a device.
"""

from __future__ import annotations

from typing import Any

from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError

__all__ = ["THROTTLE_REASONS", "memory_used_bytes", "open_nvml", "throttle_reasons"]

# nvmlClocksThrottleReasons*: those that slow work down against the user's wish
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat, by the driver",
    0x40: "heat, by the hardware",
    0x80: "power brake",
}


def open_nvml(index: int = 0) -> Sensor:
    """Joules since the driver was loaded, or watts where there is no counter."""
    card = _card(index)
    covers = f"GPU {index} with its memory ({_ask('nvmlDeviceGetName', card) or 'unnamed'})"

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


def throttle_reasons(index: int = 0) -> tuple[str, ...]:
    """Why the card runs slower than it could, now; empty when it does not."""
    bits = _ask("nvmlDeviceGetCurrentClocksThrottleReasons", _card(index))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


def memory_used_bytes(index: int = 0) -> int:
    """What the whole card's memory holds now, other programs' share included."""
    return int(_ask("nvmlDeviceGetMemoryInfo", _card(index)).used)


def _card(index: int) -> Any:
    _ask("nvmlInit")
    return _ask("nvmlDeviceGetHandleByIndex", index)


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
