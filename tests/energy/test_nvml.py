"""NVIDIA's cards by a library of paper below NVIDIA's own bindings."""

from __future__ import annotations

import sys

import pynvml
import pytest

from edgemm.energy import sensor
from edgemm.energy.sensor import memory_used_bytes, open_nvml, throttle_reasons
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


def test_a_card_that_counts_gives_joules(driver):
    driver(PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=7_000_000_001_500))
    opened = open_nvml()
    assert (opened.counts, opened.covers) == (True, "GPU 0 with its memory (Paper 9000)")
    assert opened.read() == pytest.approx(7_000_000_001.5)


def test_an_older_card_gives_watts(driver):
    driver(PaperLibrary({"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}, nvmlDeviceGetPowerUsage=61_250))
    opened = open_nvml()
    assert (opened.counts, opened.read()) == (False, 61.25)


def test_a_jetson_is_told_where_its_power_is(driver):
    statuses = {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED, "nvmlDeviceGetPowerUsage": NOT_SUPPORTED}
    driver(PaperLibrary(statuses))
    with pytest.raises(MissingError, match=r"not supported on this GPU; a Jetson's power is in its INA3221"):
        open_nvml()


def test_a_driver_that_is_not_loaded_is_told(driver):
    driver(PaperLibrary({"nvmlInitWithFlags": 9}))
    with pytest.raises(MissingError, match="nvmlInit returns 9: Driver Not Loaded"):
        open_nvml()


def test_no_library_is_told(driver, monkeypatch):
    driver(None)

    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(pynvml, "CDLL", no_library)
    with pytest.raises(MissingError, match=r"no libnvidia-ml\.so\.1"):
        open_nvml()


def test_a_driver_without_the_function_is_too_old(driver):
    class Old(PaperLibrary):
        def __getattr__(self, name):
            if "Throttle" in name:
                raise AttributeError(name)
            return super().__getattr__(name)

    driver(Old())
    with pytest.raises(MissingError, match="no nvmlDeviceGetCurrentClocksThrottleReasons: it is too old"):
        throttle_reasons()


def test_without_the_bindings_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingError, match=r"pip install 'edgemm\[energy\]'"):
        open_nvml()


def test_a_card_that_falls_off_the_bus_is_told(driver):
    library = driver(PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=1000))
    opened = open_nvml()
    library.statuses["nvmlDeviceGetTotalEnergyConsumption"] = GPU_IS_LOST
    with pytest.raises(MissingError, match="returns 15: GPU is lost"):
        opened.read()


def test_a_card_is_found_by_the_name_that_cuda_gives_it(driver, monkeypatch):
    """NVML counts by PCI bus, CUDA from the fastest on: two cards may change places."""
    asked = []

    class Library(PaperLibrary):
        def nvmlDeviceGetHandleByUUID(self, uuid, handle):
            asked.append(uuid.value)
            return 0

    monkeypatch.setattr(sensor, "gpu_uuid", lambda number: f"GPU-{number}")
    driver(Library(nvmlDeviceGetTotalEnergyConsumption=1000))
    assert open_nvml(1).covers == "GPU 1 with its memory (Paper 9000)" and asked == [b"GPU-1"]


@pytest.mark.parametrize(
    ("bits", "reasons"), [(0x0, ()), (0x1, ()), (0x4 | 0x40, ("power cap", "heat, by the hardware")), (0x100, ())]
)
def test_only_reasons_that_slow_work_down_are_named(driver, bits, reasons):
    driver(PaperLibrary(nvmlDeviceGetCurrentClocksThrottleReasons=bits))
    assert throttle_reasons() == reasons


def test_a_cards_memory_is_what_it_holds_now(driver):
    class Library(PaperLibrary):
        def nvmlDeviceGetMemoryInfo(self, device, answer):
            answer._obj.total, answer._obj.free, answer._obj.used = 80, 70, 10
            return 0

    driver(Library())
    assert memory_used_bytes() == 10
