"""benchmarks/in_turns.py: nobody is always first, or always behind the same one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

pytest.importorskip("onnxruntime")
from benchmarks.in_turns import measured, order


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_everybody_is_at_every_place_as_often(names):
    rounds = [order(names, number) for number in range(2 * len(names))]
    for place in range(len(names)):
        assert Counter(one[place] for one in rounds) == dict.fromkeys(names, 2)
    for one, other in ((0, 1), (1, 2)):
        if other < len(names):  # neighbors follow one another either way as often
            pairs = [pair for found in rounds for pair in pairwise(found)]
            pair = (names[one], names[other])
            assert pairs.count(pair) == pairs.count(pair[::-1]) > 0


def test_bundles_are_measured_in_that_order_and_told_in_the_given_one():
    called: list[str] = []
    works = {name: {"draw": (lambda name=name: called.append(name), 1)} for name in ("a", "b")}
    found = measured(works, 4)
    assert called == ["a", "b", "b", "a", "b", "a", "a", "b"]
    assert list(found["draw"]) == ["a", "b"] and all(len(each) == 2 for each in found["draw"].values())
