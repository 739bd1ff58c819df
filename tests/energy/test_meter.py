"""A benchmark's joules: gross, above idle, or null with the reason."""

from __future__ import annotations

import json

import pytest

from edgemm.energy import meter as meter_module
from edgemm.energy.heat import Heat
from edgemm.energy.meter import Found, Meter, open_meter
from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError
from tests.bench.recorded import PC, lay_out


class PaperMachine:
    """4 W idle and 10 W at work, on its own clock; the sampler's thread is slower than any test."""

    def __init__(self, monkeypatch, counts: bool = True) -> None:
        self.now, self.joules, self.watts = 100.0, 0.0, 4.0
        self.gone = False
        monkeypatch.setattr(meter_module.time, "sleep", lambda seconds: self.pass_time(seconds, 4.0))
        sensor = Sensor("paper", "all of it", counts, self.read)
        cool = Heat({}, {}, {})
        self.meter = Meter(Found((sensor,), {}), lambda: cool, idle_s=2.0, rate_hz=1e-3, clock=lambda: self.now)

    def pass_time(self, seconds: float, watts: float) -> None:
        self.now, self.joules = self.now + seconds, self.joules + seconds * watts

    def read(self) -> float:
        if self.gone:
            raise MissingError("unplugged")
        return self.joules

    def work(self, name: str, seconds: float, units: int) -> None:
        with self.meter.work(name) as work:
            self.pass_time(seconds, 10.0)
            work.units = units


@pytest.fixture
def machine(monkeypatch):
    return PaperMachine(monkeypatch)


def test_gross_and_above_idle(machine):
    with machine.meter:
        machine.work("token", 3.2, 64)
        machine.work("token", 6.4, 64)
        machine.work("image", 5.0, 1)
    report = machine.meter.report()
    assert report["idle_w"] == pytest.approx(4.0)
    assert report["per"]["token"]["gross_j"]["samples"] == pytest.approx([0.5, 1.0])
    assert report["per"]["token"]["above_idle_j"]["samples"] == pytest.approx([0.3, 0.6])
    assert report["per"]["image"]["gross_j"]["p50"] == pytest.approx(50)
    assert report["per"]["image"]["above_idle_j"]["p50"] == pytest.approx(30)
    assert report["per"]["token"]["reason"] is None and report["problems"] == []
    json.dumps(report, allow_nan=False)


def test_warming_up_is_forgotten(machine):
    with machine.meter:
        machine.work("token", 9.0, 1)
        machine.meter.forget()
        machine.work("token", 1.0, 10)
    assert machine.meter.report()["per"]["token"]["gross_j"]["samples"] == pytest.approx([1.0])


def test_a_sensor_that_vanishes_mid_run_is_told_and_what_it_saw_is_kept(machine):
    with machine.meter:
        machine.work("token", 1.0, 10)
        machine.gone = True
        machine.work("token", 1.0, 10)
        machine.work("image", 1.0, 1)
    report = machine.meter.report()
    assert report["per"]["token"]["gross_j"]["count"] == 1
    assert report["per"]["image"]["gross_j"] is None and report["per"]["image"]["above_idle_j"] is None
    assert "unplugged" in report["per"]["image"]["reason"]
    assert any("1 of 2 runs have no energy" in problem for problem in report["problems"])
    assert any("readings failed" in problem for problem in report["problems"])


def test_an_idle_that_could_not_be_measured_leaves_gross_alone(machine):
    machine.gone = True
    with machine.meter:
        machine.gone = False
        machine.work("token", 1.0, 10)
    report = machine.meter.report()
    assert report["idle_w"] is None and report["per"]["token"]["above_idle_j"] is None
    assert report["per"]["token"]["gross_j"]["p50"] == pytest.approx(1.0)
    assert any(problem.startswith("idle: ") for problem in report["problems"])


def test_a_counter_that_did_not_move_is_no_zero(machine):
    with machine.meter:
        with machine.meter.work("image") as work:
            machine.now += 0.01
            work.units = 1
    report = machine.meter.report()
    assert report["per"]["image"]["gross_j"] is None and "moves too slowly" in report["per"]["image"]["reason"]


def test_few_readings_of_a_power_are_told(monkeypatch):
    machine = PaperMachine(monkeypatch, counts=False)
    machine.joules = 8.0  # read as watts here
    with machine.meter:
        machine.work("image", 1.0, 1)
    assert any("read only 2 times" in problem for problem in machine.meter.report()["problems"])


def test_work_below_idle_is_told(machine):
    with machine.meter:
        with machine.meter.work("token") as work:
            machine.pass_time(1.0, 1.0)
            work.units = 1
    report = machine.meter.report()
    assert report["per"]["token"]["above_idle_j"]["p50"] == pytest.approx(-3.0)
    assert any("no more than idle" in problem for problem in report["problems"])


def test_no_sensor_is_null_with_every_reason_and_costs_no_idle_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        meter_module.time, "sleep", lambda seconds: pytest.fail("nothing to watch the idle machine with")
    )
    with open_meter("cpu", lay_out(tmp_path, PC)) as meter:
        with meter.work("token") as work:
            work.units = 64
    report = meter.report()
    assert report["sensors"] == [] and report["idle_w"] is None
    assert report["per"]["token"]["gross_j"] is None and "RAPL: no RAPL counter" in report["per"]["token"]["reason"]
    assert report["heat"] == {"zones": None, "throttled": None}
