"""What counts as equal: limits, and what no limit may let through."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgemm.errors import CheckFailedError
from edgemm.verify.parity import compare_arrays, compare_choices, compare_pictures, compare_replies, require

WANTED = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
PIXELS = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 4, 4)
PRECISIONS = ("fp32", "int8", "int4")


def arrays(precision, found, wanted=WANTED):
    return compare_arrays("it", precision, [wanted, found], [wanted, wanted])


@pytest.mark.parametrize(("difference", "passed"), [(1.9e-4, True), (2.1e-4, False)])
def test_float_outputs_may_differ_by_a_ten_thousandth_of_the_largest(difference, passed):
    changed = WANTED.copy()
    changed[1, 1, 1] += difference
    assert arrays("fp32", changed).passed is passed


def test_the_tolerance_shrinks_with_the_values():
    assert not arrays("fp32", WANTED * 0.01 + 1e-5, WANTED * 0.01).passed
    assert arrays("fp32", WANTED * 0.01 + 1e-6, WANTED * 0.01).passed


@pytest.mark.parametrize(
    ("precision", "noise", "passed"),
    [("int8", 0.08, True), ("int8", 0.2, False), ("int4", 0.6, True), ("int4", 0.7, False)],
)
def test_quantized_outputs_have_a_floor_in_decibel(precision, noise, passed):
    spread = float(np.sqrt(np.square(WANTED).mean()))
    sign = np.where(np.arange(24).reshape(WANTED.shape) % 2, 1, -1)
    found = arrays(precision, WANTED + sign * noise * spread)
    assert found.value == pytest.approx(-20 * np.log10(noise), abs=0.01)
    assert found.passed is passed


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_never_passes_on_either_side(precision, bad):
    broken = WANTED.copy()
    broken[0, 0, 0] = bad
    assert not arrays(precision, broken).passed
    assert not compare_arrays("it", precision, [WANTED, WANTED], [broken, WANTED]).passed
    assert not compare_pictures("it", precision, broken[:1], WANTED[:1]).passed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_another_shape_never_passes(precision):
    assert not arrays(precision, WANTED[:, :2]).passed
    assert not compare_pictures("it", precision, PIXELS[:, :2], PIXELS).passed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_equal_zeros_and_nothing_else(precision):
    zeros = np.zeros_like(WANTED)
    assert arrays(precision, zeros, zeros).passed
    assert not arrays(precision, WANTED, zeros).passed
    assert not arrays(precision, zeros, WANTED).passed


def test_every_token_counts_in_float():
    assert compare_choices("it", "fp32", [5, 6, 7], [5, 6, 7]).passed
    assert not compare_choices("it", "fp32", [5, 6, 8], [5, 6, 7]).passed
    assert not compare_replies("it", "fp32", [5, 6], [5, 6, 7]).passed
    assert not compare_replies("it", "fp32", [5, 6, 7], []).passed
    assert compare_replies("it", "fp32", [], []).passed


@pytest.mark.parametrize(
    ("precision", "alike", "passed"), [("int8", 6, True), ("int8", 5, False), ("int4", 4, True), ("int4", 3, False)]
)
def test_quantized_choices_have_a_floor(precision, alike, passed):
    found = compare_choices("it", precision, [1] * alike + [2] * (8 - alike), [1] * 8)
    assert (found.value, found.passed) == (alike / 8, passed)


def test_one_near_tie_does_not_judge_a_quantized_reply():
    found = compare_replies("it", "int8", [1, 9, 9, 9], [1, 2, 3, 4])
    assert (found.value, found.limit, found.passed) == (0.25, None, True)
    assert found.line() == "-[ ] it: tokens alike before the first that differs: 0.25, 1 of 4 (not judged)"
    judged = compare_choices("it", "int8", [1, 2, 3, 4], [1, 2, 3, 4])
    assert judged.line() == "-[✓] it: values close, tokens chosen alike: 1, 4 of 4 (at least: 0.75)"


@pytest.mark.parametrize(
    ("precision", "difference", "passed"),
    [
        ("fp32", 9e-4, True),
        ("fp32", 2e-3, False),
        ("int8", 0.09, True),
        ("int8", 0.11, False),
        ("int4", 0.19, True),
        ("int4", 0.21, False),
    ],
)
def test_pictures(precision, difference, passed):
    assert compare_pictures("it", precision, PIXELS + difference, PIXELS).passed is passed


def test_what_failed_is_named_with_both_numbers():
    good, bad = arrays("fp32", WANTED), compare_pictures("denoise loop, 'x'", "fp32", PIXELS + 0.5, PIXELS)
    require([good, good], "the bundle differs")
    with pytest.raises(
        CheckFailedError,
        match=r"^the bundle differs: denoise loop, 'x': values not close enough, max diff: 0\.5 \(atol: 0\.001\)",
    ):
        require([good, bad], "the bundle differs")
    with pytest.raises(CheckFailedError, match="1 more of 3"):
        require([bad, good, bad], "the bundle differs")


def test_every_verdict_can_be_written_down():
    wrong = compare_arrays("it", "int8", [WANTED * np.nan], [WANTED])
    assert json.loads(json.dumps(wrong.to_json(), allow_nan=False))["value"] is None
