"""Readers whose score is known: one that knows all, one that is blind, one that always says yes."""

from __future__ import annotations

import pytest

from edgemm.errors import InputError
from edgemm.evaluate.read_suite import default_split, run_read_suite
from edgemm.evaluate.subject import real_pictures
from tests.evaluate.paper_subject import PaperSubject

SPLIT = "held-out-style"


def reader(reply):
    return PaperSubject(lambda prompt: None, lambda picture, question: reply(picture, question), 64)


@pytest.fixture(scope="module")
def truth(emoji64):
    """(pixels, question) -> the right answer."""
    samples = emoji64.split(SPLIT)
    pixels = dict(zip([sample.id for sample in samples], real_pictures(emoji64, samples, 64)))
    asked = [question for question in emoji64.questions if question.split == SPLIT]
    return {(pixels[question.sample].tobytes(), question.question): question.answer for question in asked}


def test_the_strictest_split_is_another_style(emoji64):
    assert default_split(emoji64) == SPLIT


def test_one_who_sees_and_knows_is_right_throughout(emoji64, truth):
    subject = reader(lambda picture, question: f"{truth[picture.tobytes(), question].capitalize()}.")
    part = run_read_suite(subject, emoji64, [SPLIT], None).parts[SPLIT]
    assert {kind: score.accuracy.value for kind, score in part.kinds.items()} == dict.fromkeys(part.kinds, 1.0)
    assert list(part.kinds) == ["label", "colour", "group", "yesno"]
    assert part.pictures == 79 and part.kinds["label"].accuracy.count == 79
    assert part.balanced is not None and part.balanced.accuracy.count == 4 + 25 + 126


def test_baselines_are_those_of_the_dataset(emoji64):
    part = run_read_suite(reader(lambda *_: ""), emoji64, [SPLIT], 4).parts[SPLIT]
    for kind, score in part.kinds.items():
        assert score.baseline == pytest.approx(emoji64.baselines[kind][SPLIT]["accuracy"])
        assert score.accuracy.count == 4 and score.accuracy.value == 0.0
    others = [part.kinds[kind].baseline for kind in ("colour", "group", "yesno")]
    assert part.balanced is not None and part.balanced.baseline == pytest.approx(sum(others) / 3)  # 4 of each


def test_a_blind_answerer_reaches_the_baseline_of_yes_and_no_and_no_more(emoji64):
    part = run_read_suite(reader(lambda *_: "yes"), emoji64, [SPLIT], None).parts[SPLIT]
    assert part.kinds["yesno"].accuracy.value == part.kinds["yesno"].baseline == 0.5
    assert part.yes_no is not None and part.yes_no.yes_ratio == 1.0 and part.yes_no.f1 == pytest.approx(2 / 3)


def test_a_tag_is_right_in_the_kinder_count_only(emoji64):
    tags = {}
    for sample in emoji64.split(SPLIT):
        pixels = real_pictures(emoji64, [sample], 64)[0].tobytes()
        tags[pixels] = next(tag for tag in (*sample.tags, "") if tag != sample.label)
    part = run_read_suite(reader(lambda picture, _: tags[picture.tobytes()]), emoji64, [SPLIT], 30).parts[SPLIT]
    assert part.any_tag is not None
    assert part.kinds["label"].accuracy.value == 0.0 and part.any_tag.value > 0.9


def test_every_reply_is_kept(emoji64):
    records = run_read_suite(reader(lambda *_: "Hm?"), emoji64, [SPLIT], 2).records
    assert len(records) == 8
    assert records[0].keys() == {"sample", "split", "kind", "question", "answer", "reply", "right", "circular"}
    assert {record["reply"] for record in records} == {"Hm?"}


def test_a_split_without_questions_is_refused(emoji64):
    with pytest.raises(InputError, match="no question in split 'scorer'; try 'held-out-style'"):
        run_read_suite(reader(lambda *_: ""), emoji64, ["scorer"], None)


def test_who_takes_the_first_option_is_right_in_one_order_and_never_in_all(emoji64, truth):
    def first(picture, question):
        return question.splitlines()[1] if "\n" in question else truth[picture.tobytes(), question]

    blind, seeing = (
        run_read_suite(reader(reply), emoji64, [SPLIT], 3, circular=True).parts[SPLIT]
        for reply in (first, lambda picture, question: truth[picture.tobytes(), question.split("\n")[0]])
    )
    assert {kind: found.value for kind, found in blind.circular.items()} == {"colour": 0, "group": 0}
    assert {kind: found.value for kind, found in seeing.circular.items()} == {"colour": 1, "group": 1}
    assert seeing.vqa.value == 1
