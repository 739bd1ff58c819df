"""NVIDIA's cards by a library of paper."""

from __future__ import annotations

import ctypes

import pytest

from edgemm.energy.nvml import memory_used_bytes, open_nvml, throttle_reasons
from edgemm.errors import MissingError

NOT_SUPPORTED, GPU_IS_LOST = 3, 15


class Said:
    """nvmlErrorString: takes a restype, as ctypes' functions do."""

    restype: object = None

    def __call__(self, status):
        return {9: b"Driver Not Loaded", GPU_IS_LOST: b"GPU is lost"}.get(status)


class PaperLibrary:
    """Answers every question with `values`; a function in `statuses` returns that instead."""

    def __init__(self, statuses=None, **values):
        self.statuses = statuses or {}
        self.values = values
        self.nvmlErrorString = Said()

    def __getattr__(self, name):
        def call(*arguments):
            if name == "nvmlDeviceGetName":
                arguments[1].value = b"Paper 9000"
            elif name in self.values:
                arguments[1]._obj.value = self.values[name]
            return self.statuses.get(name, 0)

        return call


def test_a_card_that_counts_gives_joules():
    library = PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=7_000_000_001_500)
    sensor = open_nvml(load=lambda name: library)
    assert (sensor.counts, sensor.covers) == (True, "GPU 0 with its memory (Paper 9000)")
    assert sensor.read() == pytest.approx(7_000_000_001.5)


def test_an_older_card_gives_watts():
    library = PaperLibrary({"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}, nvmlDeviceGetPowerUsage=61_250)
    sensor = open_nvml(load=lambda name: library)
    assert (sensor.counts, sensor.read()) == (False, 61.25)


def test_a_jetson_is_told_where_its_power_is():
    statuses = {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED, "nvmlDeviceGetPowerUsage": NOT_SUPPORTED}
    with pytest.raises(MissingError, match=r"not supported on this GPU; a Jetson's power is in its INA3221"):
        open_nvml(load=lambda name: PaperLibrary(statuses))


def test_a_driver_that_is_not_loaded_is_told():
    with pytest.raises(MissingError, match="nvmlInit_v2 returns 9: Driver Not Loaded"):
        open_nvml(load=lambda name: PaperLibrary({"nvmlInit_v2": 9}))


def test_no_library_is_told():
    with pytest.raises(MissingError, match=r"no libnvidia-ml\.so\.1"):
        open_nvml(load=lambda name: ctypes.CDLL("libnothing-of-this-name.so.1"))


def test_a_card_that_falls_off_the_bus_is_told():
    library = PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=1000)
    sensor = open_nvml(load=lambda name: library)
    library.statuses["nvmlDeviceGetTotalEnergyConsumption"] = GPU_IS_LOST
    with pytest.raises(MissingError, match="returns 15: GPU is lost"):
        sensor.read()


@pytest.mark.parametrize(
    ("bits", "reasons"), [(0x0, ()), (0x1, ()), (0x4 | 0x40, ("power cap", "heat, by the hardware")), (0x100, ())]
)
def test_only_reasons_that_slow_work_down_are_named(bits, reasons):
    library = PaperLibrary(nvmlDeviceGetCurrentClocksThrottleReasons=bits)
    assert throttle_reasons(load=lambda name: library) == reasons


def test_a_cards_memory_is_what_it_holds_now():
    class Library(PaperLibrary):
        def nvmlDeviceGetMemoryInfo(self, device, answer):
            answer._obj.total, answer._obj.free, answer._obj.used = 80, 70, 10
            return 0

    assert memory_used_bytes(load=lambda name: Library()) == 10
