"""Metrics against values worked out by hand, published, or counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemm.evaluate.metrics import kid, psnr_db, ratio_of_means, share, yes_no_scores


def test_wilson_interval_is_the_textbook_one():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81 of 263 and 1 of 29.
    found = share([True] * 81 + [False] * 182)
    assert (found.value, found.count) == (81 / 263, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    rare = share([True] + [False] * 28)
    assert (round(rare.low, 4), round(rare.high, 4)) == (0.0061, 0.1718)


def test_wilson_interval_stays_inside_at_the_ends():
    none, all_of_them = share([False] * 20), share([True] * 15)
    assert none.low == 0.0 and round(none.high, 4) == 0.1611  # Newcombe's 0 of 20
    assert all_of_them.high == 1.0 and round(all_of_them.low, 4) == 0.7961  # 15 / (15 + z^2)
    assert math.isnan(share([]).value)


def test_ratio_is_of_the_means_and_its_interval_surrounds_it():
    drawn, real = [1, 0, 0, 1, 0, 0, 0, 0] * 20, [1, 1, 0, 1, 0, 0, 1, 0] * 20
    found = ratio_of_means(drawn, real)
    assert found.value == 0.5
    assert 0.3 < found.low < 0.5 < found.high < 0.7


def test_ratio_is_paired():
    # Both values of a sample always agree, so no resample can give another ratio; unpaired ones would.
    values = [1, 0, 1, 1, 0, 0, 1]
    assert ratio_of_means(values, values) == ratio_of_means(values, values, seed=1)
    assert ratio_of_means(values, values).low == ratio_of_means(values, values).high == 1.0
    with pytest.raises(ValueError, match="3 values over 2"):
        ratio_of_means([1, 0, 1], [1, 0])


def test_ratio_over_nothing_is_no_number():
    assert math.isnan(ratio_of_means([1, 0], [0, 0]).value)


def test_yes_no_scores_by_hand():
    truth = [True, True, True, False, False, False]
    said = [True, True, None, True, False, False]  # 2 true yes, 1 false yes, 1 yes missed
    found = yes_no_scores(truth, said)
    assert found.precision == 2 / 3 and found.recall == 2 / 3
    assert found.f1 == pytest.approx(2 / 3)
    assert found.yes_ratio == 0.5 and found.unclear == 1


def test_always_yes_has_perfect_recall_and_betrays_itself_by_its_ratio():
    found = yes_no_scores([True, False] * 5, [True] * 10)
    assert (found.recall, found.precision, found.yes_ratio) == (1.0, 0.5, 1.0)


def test_kid_is_the_sum_over_pairs():
    random = np.random.default_rng(0)
    one, other = random.random((5, 3)), random.random((4, 3)) + 0.5

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y)) / 3 + 1) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(x, y) for x in one for y in other]
    expected = within(one) + within(other) - 2 * sum(between) / len(between)
    assert kid(one, other) == pytest.approx(expected, rel=1e-12)


def test_kid_is_about_zero_for_one_source_and_large_for_two():
    random = np.random.default_rng(0)
    half, other_half, moved = (random.standard_normal((200, 16)) + shift for shift in (0.0, 0.0, 1.0))
    assert abs(kid(half, other_half)) < 0.05 < 1 < kid(half, moved)
    assert math.isnan(kid(half[:1], other_half))


def test_psnr_of_known_pictures():
    picture = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32) * 0.5
    assert psnr_db(picture + 0.1, picture) == pytest.approx(20, abs=1e-4)
    assert psnr_db(picture, picture) == 100
