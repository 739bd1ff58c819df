"""Which sensors a machine has, and why not the others."""

from __future__ import annotations

import pytest

from edgemm.energy.meter import find_sensors
from tests.bench.recorded import ORIN_NANO, PC, lay_out
from tests.energy.layouts import AGX_POWER, NANO_POWER, THOR_POWER, X86_POWER
from tests.energy.test_nvml import PaperLibrary
from tests.energy.test_tegrastats import ORIN_NANO as LINE
from tests.energy.test_tegrastats_stream import write_tool


@pytest.mark.parametrize("files", [NANO_POWER, AGX_POWER, THOR_POWER])
def test_a_jetson_is_measured_by_its_rails_alone(tmp_path, files):
    found = find_sensors("cuda", lay_out(tmp_path, files))
    assert [sensor.source for sensor in found.sensors] == ["INA3221"]
    assert found.missing == {"NVML": "not supported on Jetson"}


def test_a_jetson_whose_files_are_closed_falls_back_to_tegrastats(tmp_path):
    tool = write_tool(tmp_path, f"echo '{LINE}'; exec sleep 60")
    found = find_sensors("cuda", lay_out(tmp_path, ORIN_NANO), tool)
    (sensor,) = found.sensors
    sensor.close()
    assert sensor.source == "tegrastats" and "no INA3221" in found.missing["INA3221"]


def test_no_program_of_a_recorded_machine_is_run(tmp_path):
    """A folder that was sent would choose what runs here."""
    write_tool(lay_out(tmp_path, ORIN_NANO), f"touch {tmp_path}/was-run")
    found = find_sensors("cuda", tmp_path)
    assert found.sensors == () and "is not run for a recorded machine" in found.missing["tegrastats"]
    assert not (tmp_path / "was-run").exists()


def test_a_jetson_without_either_tells_every_reason(tmp_path):
    found = find_sensors("cuda", lay_out(tmp_path, ORIN_NANO))
    assert found.sensors == () and list(found.missing) == ["INA3221", "tegrastats", "NVML"]


@pytest.mark.parametrize(("device", "sources"), [("cpu", ["RAPL"]), ("cuda", ["RAPL", "NVML"])])
def test_a_pc_adds_its_card_when_the_card_works(tmp_path, driver, device, sources):
    driver(PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=1000))
    found = find_sensors(device, lay_out(tmp_path, X86_POWER))
    assert [sensor.source for sensor in found.sensors] == sources and not found.missing


def test_the_card_that_works_is_the_one_that_is_measured(tmp_path, driver, monkeypatch):
    asked = []
    monkeypatch.setattr("edgemm.energy.sensor.gpu_uuid", lambda number: asked.append(number) or f"GPU-{number}")
    driver(PaperLibrary(nvmlDeviceGetTotalEnergyConsumption=1000))
    find_sensors("cuda:1", lay_out(tmp_path, X86_POWER))
    assert asked == [1]


def test_a_pc_without_any_tells_why(tmp_path, driver):
    driver(PaperLibrary({"nvmlInitWithFlags": 9}))
    found = find_sensors("cuda", lay_out(tmp_path, PC))
    assert found.sensors == () and list(found.missing) == ["RAPL", "NVML"]
