"""Joules between two moments, from samples whose integral is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.energy.sampler import energy_between

GAP_S = 10.0


@pytest.mark.parametrize(
    ("times", "watts", "start", "end", "joules"),
    [
        ([0, 1, 2], [5, 5, 5], 0, 2, 10.0),
        ([0, 2], [0, 10], 0, 2, 10.0),  # a ramp
        ([0, 2], [0, 10], 1, 2, 7.5),  # its second half: 5 W to 10 W
        ([0, 1, 2, 3], [0, 4, 4, 0], 0.5, 2.5, 8 - 2 * 0.5),  # a trapezoid less its two corners
        ([0, 0.1, 3], [2, 2, 2], 0.2, 0.4, 0.4),  # between two samples
        ([0, 1], [-1, 3], 0, 1, 1.0),
    ],
)
def test_watts_are_integrated(times, watts, start, end, joules):
    assert energy_between(times, watts, False, start, end, GAP_S).joules == pytest.approx(joules)


def test_unevenly_sampled_watts_have_the_integral_of_their_curve():
    times = np.sort(np.random.default_rng(0).uniform(0, 10, 4000))
    times[0], times[-1] = 0, 10
    found = energy_between(times.tolist(), (20 + 5 * np.sin(times)).tolist(), False, 0, 10, GAP_S)
    assert found.joules == pytest.approx(200 + 5 * (1 - np.cos(10)), rel=1e-4)  # steps near 2.5 ms: error near 1e-6
    assert found.samples == 4000


@pytest.mark.parametrize(("start", "end", "joules"), [(0, 4, 40), (1, 3, 20), (0.5, 1, 5)])
def test_counters_are_subtracted(start, end, joules):
    assert energy_between([0, 1, 2, 4], [100, 110, 120, 140], True, start, end, GAP_S).joules == pytest.approx(joules)


@pytest.mark.parametrize(
    ("times", "values", "start", "end", "problem"),
    [
        ([], [], 0, 1, "no sample at the beginning or the end"),
        ([0, 1], [5, 5], 0, 2, "no sample at the beginning or the end"),
        ([1, 2], [5, 5], 0, 2, "no sample at the beginning or the end"),
        ([0, 1, 20], [5, 5, 5], 0, 20, "no sample for 19.00 s"),
        ([0, 30], [5, 5], 10, 11, "no sample for 30.00 s"),
        ([0, 1], [5, 5], 1, 1, "the clock went from"),
        ([0, 1], [5, 5], 1, 0, "the clock went from"),
        ([0, 1], [0, 0], 0, 1, "the sensor says 0 J"),
    ],
)
@pytest.mark.parametrize("counts", [False, True])
def test_what_cannot_be_known_is_a_reason_and_no_number(times, values, start, end, problem, counts):
    found = energy_between(times, values, counts, start, end, GAP_S)
    assert found.joules is None and problem in found.problem


def test_a_gap_outside_of_the_work_does_not_matter():
    assert energy_between([0, 1, 2, 90], [5, 5, 5, 5], False, 0, 2, GAP_S).joules == pytest.approx(10)
