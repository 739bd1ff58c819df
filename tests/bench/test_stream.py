"""What benchmarks/watch.py counts as an event, and the stream in which it looks for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

WATCH = Path(__file__).resolve().parents[2] / "benchmarks" / "watch.py"
TURNS = [(20, "up"), (40, "left")]


@pytest.fixture(scope="module")
def watch():
    spec = importlib.util.spec_from_file_location("watch", WATCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (TURNS, 1.0),
        ([(30, "up"), (50, "left")], 1.0),  # a second late
        ([(31, "up"), (40, "left")], 0.5),
        ([(20, "left"), (40, "left")], 0.5),  # the wrong way is none, and one that was told
        ([(20, "up"), (21, "up"), (40, "left")], 0.8),  # twice
        ([], 0.0),
    ],
)
def test_an_event_is_right_once_where_time_and_name_are(watch, told, found):
    assert watch.f1(told, TURNS, 10) == pytest.approx(found)


def test_the_shape_moves_as_it_is_said_to_and_never_leaves(watch):
    ways = watch._ways(60)
    assert [number for number in range(1, 60) if ways[number] != ways[number - 1]] == [20, 40]
    middles = []
    for frame in watch._moving("square", ways, 32):
        y, x = np.nonzero((frame < 200).any(-1))
        middles.append(np.angle(np.exp(2j * np.pi * np.stack([x, y]) / 32).mean(1)))
    steps = np.angle(np.exp(1j * np.diff(middles, axis=0))) * 32 / (2 * np.pi)
    wanted = [{"left": (-2, 0), "right": (2, 0), "up": (0, -2), "down": (0, 2)}[way] for way in ways[1:]]
    assert np.abs(steps - wanted).max() < 0.3
