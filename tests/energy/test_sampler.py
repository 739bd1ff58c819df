"""The thread that samples, on a clock and with sensors that do what the test says."""

from __future__ import annotations

import threading

import pytest

from edgemm.energy.sampler import Sampler
from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError


class Script:
    """A clock and a sensor at once: `now` and `value` are set by the test; a string is a failure."""

    def __init__(self, counts: bool = False) -> None:
        self.now: float = 0.0
        self.value: float | str = 10.0
        self.closed = False
        self.sensor = Sensor("paper", "everything", counts, self.read, self.close)

    def read(self) -> float:
        if isinstance(self.value, str):
            raise MissingError(self.value)
        return self.value

    def close(self) -> None:
        self.closed = True


def sampled(script: Script, moments: list[tuple[float, float | str]]) -> Sampler:
    sampler = Sampler([script.sensor], rate_hz=10, clock=lambda: script.now)  # a gap is more than 1 s
    for script.now, script.value in moments:
        sampler.mark()
    return sampler


def test_energy_is_power_over_the_monotonic_time():
    found = sampled(Script(), [(0.0, 10.0), (0.5, 20.0), (1.0, 10.0)]).energy(0.0, 1.0)
    assert (found.joules, found.samples) == (pytest.approx(15.0), 3)


def test_two_sensors_add_up_and_one_without_a_number_leaves_none():
    card, processor = Script(), Script(counts=True)
    sampler = Sampler([card.sensor, processor.sensor], rate_hz=10, clock=lambda: card.now)
    for card.now, processor.value in [(0.0, 100.0), (1.0, 107.0)]:
        sampler.mark()
    assert sampler.energy(0.0, 1.0).joules == pytest.approx(10 + 7)
    card.now, processor.value = 1.5, "unplugged"
    sampler.mark()
    found = sampler.energy(0.0, 1.5)
    assert found.joules is None and "unplugged" in found.problem


def test_a_sensor_that_vanishes_keeps_what_was_measured_before_and_is_told():
    sampler = sampled(Script(), [(0.0, 10.0), (0.5, 10.0), (1.0, "gone"), (1.5, "gone")])
    assert sampler.energy(0.0, 0.5).joules == pytest.approx(5.0)
    lost = sampler.energy(0.5, 1.5)
    assert lost.joules is None and "gone" in lost.problem
    assert sampler.problems() == ["paper: 2 of 4 readings failed, the last because gone"]


def test_a_sensor_that_comes_back_within_the_gap_is_bridged_and_told():
    sampler = sampled(Script(), [(0.0, 10.0), (0.5, "busy"), (1.0, 10.0)])
    assert sampler.energy(0.0, 1.0).joules == pytest.approx(10.0)
    assert len(sampler.problems()) == 1


@pytest.mark.parametrize("counts", [False, True])
def test_a_clock_that_jumps_ahead_leaves_no_number(counts):
    sampler = sampled(Script(counts), [(0.0, 10.0), (3600.0, 20.0)])
    assert sampler.energy(0.0, 3600.0).problem == "paper: no sample for 3600.00 s"


def test_a_clock_that_goes_back_is_told_and_its_samples_do_not_count():
    sampler = sampled(Script(), [(5.0, 10.0), (5.5, 10.0), (1.0, 1e9), (6.0, 10.0)])
    assert sampler.energy(5.0, 6.0).joules == pytest.approx(10.0)
    assert sampler.energy(5.5, 1.0).joules is None
    assert sampler.problems() == ["the clock went back at 1 readings; those samples do not count"]


def test_no_sensor_is_a_reason():
    assert Sampler([]).energy(0.0, 1.0).problem == "no sensor"


def test_the_thread_samples_by_itself_and_closes_its_sensors():
    enough = threading.Event()
    script, reads = Script(), []

    def read() -> float:
        reads.append(1)
        if len(reads) >= 5:
            enough.set()
        return 3.0

    with Sampler([Sensor("paper", "everything", False, read, script.close)], rate_hz=500) as sampler:
        start = sampler.mark()
        reads.clear()  # those before the mark, of which a busy machine lets the thread make many, count for nothing
        enough.clear()
        assert enough.wait(timeout=600)
        end = sampler.mark()
    assert script.closed
    found = sampler.energy(start, end)
    assert found.samples >= 5 and (found.joules is None or found.joules == pytest.approx(3 * (end - start)))


def test_what_changes_slowly_is_looked_at_once_a_second_of_samples():
    looked = threading.Event()
    with Sampler([], rate_hz=100, each_second=looked.set):
        assert looked.wait(timeout=600)
