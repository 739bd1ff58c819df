"""The formulas of docs/bundle.md, by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgemm.runtimes import schedule


def test_times_without_shift_are_even():
    assert schedule.times(4, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_times_with_shift_stay_near_the_noise():
    assert schedule.times(2, 3.0) == [0.0, 0.25, 1.0]  # u = 1/2: 0.5 / (0.5 + 3 * 0.5)


def test_noise_is_pcg64s_and_the_same_everywhere():
    noise = schedule.initial_noise(7, 2, 3)
    assert noise.dtype == np.float32
    expected = [[1.5219693, -1.1441058, 1.1501616], [-1.7846532, -0.77149874, 1.0191615]]
    np.testing.assert_array_equal(noise, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_steps_towards_a_fixed_picture_walk_the_straight_line(steps):
    noise, clean = schedule.initial_noise(0, 4, 3), schedule.initial_noise(1, 4, 3)
    x, times = noise, schedule.times(steps, 2.0)
    for now, later in pairwise(times):
        x = schedule.step(x, clean, now, later)
        np.testing.assert_allclose(x, later * clean + (1 - later) * noise, atol=1e-5)
    assert x is clean


def test_guidance_is_the_line_through_both_predictions():
    conditional, unconditional = np.float32([3.0]), np.float32([1.0])
    assert [schedule.guide(conditional, unconditional, w)[0] for w in (0.0, 1.0, 2.0)] == [1.0, 3.0, 5.0]


def test_guidance_is_left_out_at_one_and_outside_its_interval():
    interval = (0.25, 0.75)
    assert [schedule.is_guided(t, 2.0, interval) for t in (0.0, 0.25, 0.75, 0.8)] == [False, True, True, False]
    assert not schedule.is_guided(0.5, 1.0, interval)
