"""Energy of NVIDIA's graphics cards by NVML, the driver's own library, through ctypes: no Python package is needed.

Cards since Volta count their energy; older ones say their power.  Jetsons have the library, but it answers "not
supported" to both.  Tested with a library of paper in its place, not run on a device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError

__all__ = ["THROTTLE_REASONS", "memory_used_bytes", "open_nvml", "throttle_reasons"]

LIBRARY = "libnvidia-ml.so.1"
NOT_SUPPORTED = 3  # nvmlReturn_t
# nvmlClocksThrottleReasons*: those that slow work down against the user's wish
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat, by the driver",
    0x40: "heat, by the hardware",
    0x80: "power brake",
}
Load = Callable[[str], Any]


def open_nvml(index: int = 0, load: Load = ctypes.CDLL) -> Sensor:
    """Joules since the driver was loaded, or watts where there is no counter."""
    library = _start(load)
    device = _device(library, index)
    name = ctypes.create_string_buffer(96)
    library.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name)))
    covers = f"GPU {index} with its memory ({name.value.decode(errors='replace') or 'unnamed'})"

    def joules() -> float:
        return _ask(library, "nvmlDeviceGetTotalEnergyConsumption", device, ctypes.c_ulonglong()) / 1e3  # mJ

    def watts() -> float:
        return _ask(library, "nvmlDeviceGetPowerUsage", device, ctypes.c_uint()) / 1e3  # mW

    try:
        joules()
        counts = True
    except MissingError:
        watts()  # neither: this is the reason that is told
        counts = False
    return Sensor("NVML", covers, counts, joules if counts else watts)


def throttle_reasons(index: int = 0, load: Load = ctypes.CDLL) -> tuple[str, ...]:
    """Why the card runs slower than it could, now; empty when it does not."""
    library = _start(load)
    device = _device(library, index)
    bits = _ask(library, "nvmlDeviceGetCurrentClocksThrottleReasons", device, ctypes.c_ulonglong())
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def memory_used_bytes(index: int = 0, load: Load = ctypes.CDLL) -> int:
    """What the whole card's memory holds now, other programs' share included."""
    library = _start(load)
    memory = _Memory()
    status = library.nvmlDeviceGetMemoryInfo(_device(library, index), ctypes.byref(memory))
    _check(library, "nvmlDeviceGetMemoryInfo", status)
    return int(memory.used)


def _start(load: Load) -> Any:
    try:
        library = load(LIBRARY)
    except OSError:
        raise MissingError(f"no {LIBRARY} on this machine: it comes with NVIDIA's driver") from None
    _check(library, "nvmlInit_v2", library.nvmlInit_v2())
    return library


def _device(library: Any, index: int) -> ctypes.c_void_p:
    device = ctypes.c_void_p()
    status = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
    _check(library, "nvmlDeviceGetHandleByIndex", status)
    return device


def _ask(library: Any, function: str, device: ctypes.c_void_p, answer: Any) -> int:
    call = getattr(library, function, None)
    if call is None:
        raise MissingError(f"{LIBRARY} has no {function}: the driver is too old")
    _check(library, function, call(device, ctypes.byref(answer)))
    return answer.value


def _check(library: Any, function: str, status: int) -> None:
    if status == NOT_SUPPORTED:
        raise MissingError(f"{function}: NVML says not supported on this GPU; a Jetson's power is in its INA3221")
    if status:
        text = library.nvmlErrorString
        text.restype = ctypes.c_char_p
        said = text(status) or b"unknown error"
        raise MissingError(f"{function} returns {status}: {said.decode(errors='replace')}")
