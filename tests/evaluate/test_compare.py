"""The difference of two models on the same items."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.evaluate.metrics import compare_records, paired_difference


def reading(right, **changes):
    return [
        {"sample": f"s{i}", "split": "held-out", "kind": "group", "question": "What?", "right": bool(r), **changes}
        for i, r in enumerate(right)
    ]


def test_the_same_results_differ_by_nothing():
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert (found.value, found.low, found.high, found.changed, found.p_value) == (0, 0, 0, 0, 1)


def test_the_interval_is_that_of_the_paired_differences():
    """Against the normal interval of the differences, which a bootstrap comes close to at this count."""
    random = np.random.default_rng(0)
    hard = random.random(400)
    first, second = ((hard + random.random(400) * 0.3 > limit).astype(float) for limit in (0.6, 0.5))
    found = paired_difference(first, second)
    delta = second - first
    reach = 1.96 * delta.std() / len(delta) ** 0.5
    low, high = delta.mean() - reach, delta.mean() + reach
    assert found.value == pytest.approx(delta.mean()) and found.count == 400
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    assert found.p_value < 0.01
    shuffled = paired_difference(first, random.permutation(second))  # the same means, no pairs: a wider interval
    assert shuffled.high - shuffled.low > 1.3 * (found.high - found.low)


def test_chance_is_called_chance():
    random = np.random.default_rng(1)
    assert paired_difference(*(random.integers(2, size=(2, 200)))).p_value > 0.05


def test_records_are_paired_by_what_was_asked_not_by_order():
    first, second = reading([1, 1, 0, 0]), reading([1, 0, 0, 0])
    found = compare_records({"reading": first}, {"reading": second[::-1]})
    assert set(found) == {"held-out: group", "held-out: all but label"}
    assert (found["held-out: group"].value, found["held-out: group"].changed) == (-0.25, 1)


def test_drawings_of_either_judge_are_compared():
    judged = [{"sample": "a", "split": "train", "prompt": "p", "seed": 0, "drawn_rank": rank} for rank in (0,)]
    exact = [{"sample": "a", "split": "train", "prompt": "p", "seed": 0, "task": "colours", "passed": True}]
    assert compare_records({"drawing": judged}, {"drawing": judged})["train: drawn top-1"].first == 1
    assert set(compare_records({"drawing": exact}, {"drawing": exact})) == {"train: colours", "train: all tasks"}


def test_drawings_of_one_prompt_count_as_one():
    """Two drawings of each of two prompts: what one prompt gains in one of them is a quarter, of two items."""
    first, second = (
        [
            {"sample": sample, "split": "train", "prompt": sample, "seed": seed, "drawn_rank": rank}
            for (sample, seed), rank in zip([("a", 0), ("b", 1), ("a", 100), ("b", 101)], ranks, strict=True)
        ]
        for ranks in ((1, 0, 1, 3), (1, 0, 0, 3))
    )
    found = compare_records({"drawing": first}, {"drawing": second})["train: drawn top-1"]
    assert (found.first, found.second, found.value, found.count, found.changed) == (0.25, 0.5, 0.25, 2, 1)


def test_other_questions_are_refused():
    with pytest.raises(InputError, match="asked different things in reading"):
        compare_records({"reading": reading([1, 0])}, {"reading": reading([1])})
    with pytest.raises(InputError, match="only one of the two was evaluated on reading"):
        compare_records({"reading": reading([1])}, {})


def test_nothing_differs_by_nothing_known():
    assert math.isnan(paired_difference([], []).value)
