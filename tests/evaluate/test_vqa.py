"""VQAv2's accuracy, against its formula worked out by hand."""

from __future__ import annotations

import pytest

from edgemm.evaluate.read_suite import vqa_accuracy, vqa_normalised


@pytest.mark.parametrize(
    ("agree", "accuracy"),
    # Left out one of those who agree: k - 1 others agree; one of the rest: k. Mean of min(1, n / 3) over all ten.
    [
        (0, 0.0),
        (1, 9 * (1 / 3) / 10),
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (3, (3 * 2 / 3 + 7) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_agreement_with_three_others_is_enough(agree, accuracy):
    assert vqa_accuracy("red", ["red"] * agree + ["blue"] * (10 - agree)) == pytest.approx(accuracy)


def test_one_answer_stands_for_everybody():
    assert vqa_accuracy("Two.", ["2"]) == 1.0
    assert vqa_accuracy("three", ["2"]) == 0.0


@pytest.mark.parametrize(
    ("text", "plain"),
    [("A red apple.", "red apple"), ("1,000", "1000"), ("3.5 m", "3.5 m"), ("The, two-part\nthing!", "2 part thing")],
)
def test_what_does_not_matter_is_gone(text, plain):
    assert vqa_normalised(text) == plain
