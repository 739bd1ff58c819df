"""Guessing does not pay, and nobody's gender or skin is asked about."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from edgemm.data.format import Question
from edgemm.data.icons import dominant_colour
from edgemm.data.labels import COLOURS
from edgemm.data.questions import balanced_partners, capped, emoji_questions, surely_differ
from edgemm.data.writer import majority_baselines


def test_each_label_is_asked_with_yes_as_often_as_with_no(emoji64):
    answers = defaultdict(Counter)
    for question in emoji64.questions:
        if question.kind == "yesno":
            answers[question.split, question.question][question.answer] += 1
    assert len(answers) > 100
    assert all(count["yes"] == count["no"] for count in answers.values())


def test_yes_is_true_and_no_is_false(emoji64):
    samples = {sample.id: sample for sample in emoji64.samples}
    labels = {sample.label: sample for sample in emoji64.samples}
    for question in emoji64.questions:
        if question.kind == "yesno":
            said = re.fullmatch(r"Is this (?:an? )?(.*)\?", question.question)
            assert said
            about, truth = labels[said.group(1)], samples[question.sample]
            assert (about.label == truth.label) == (question.answer == "yes")
            assert question.answer == "yes" or about.family != truth.family


def test_a_no_comes_from_the_same_subgroup(emoji64):
    samples = {sample.id: sample for sample in emoji64.samples}
    subgroups = {f"Is this a {sample.label}?": sample.subgroup for sample in emoji64.samples}
    for question in emoji64.questions:
        if question.kind == "yesno" and question.question in subgroups:
            assert subgroups[question.question] == samples[question.sample].subgroup


def test_every_group_is_the_answer_equally_often(emoji64):
    answers = defaultdict(Counter)
    for question in emoji64.questions:
        if question.kind == "group":
            assert question.choices and len(question.choices) == len(set(question.choices))
            answers[question.split][question.answer] += 1
    assert len(answers["train"]) >= 4
    for count in answers.values():
        assert len(set(count.values())) == 1


def test_a_colour_is_asked_only_where_pixels_and_label_agree(make_sample):
    samples = [make_sample(f"noto/{colour} heart", group="smileys-emotion") for colour in ("red", "blue", "green")]
    shown = {"noto/red heart": "red", "noto/blue heart": "purple"}  # and green shows no colour at all
    asked = [question for question in emoji_questions(samples, shown, 0) if question.kind == "colour"]
    assert [(question.sample, question.answer) for question in asked] == [("noto/red heart", "red")]
    assert set(asked[0].choices or ()) <= set(COLOURS)


def test_nobody_is_asked_about_gender_or_skin(make_sample):
    people = [
        make_sample("noto/man running", group="people-body", subgroup="person-activity"),
        make_sample("noto/woman running", group="people-body", subgroup="person-activity"),
        make_sample("noto/person: white hair", group="people-body", subgroup="person"),
        make_sample("noto/person with white cane", group="people-body", subgroup="person-activity"),
        make_sample("noto/ninja", group="people-body", subgroup="person-role"),
    ]
    shown = {sample.id: "white" for sample in people}
    asked = emoji_questions(people, shown, 0)
    about = {question.sample for question in asked if question.kind == "label"}
    assert about == {"noto/person with white cane", "noto/ninja"}
    assert not [question for question in asked if question.kind == "colour"]
    assert not [question for question in asked if re.search(r"\b(wo)?man\b|hair|skin", question.question)]


def test_same_seed_gives_the_same_questions(emoji64):
    def made(seed: int) -> list[Question]:
        return emoji_questions(emoji64.samples, {}, seed)

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_stored_baselines_equal_a_recount(emoji64):
    for kind in ("label", "yesno"):
        for split, stored in emoji64.baselines[kind].items():
            answers = [q.answer for q in emoji64.questions if q.kind == kind and q.split == split]
            often = Counter(answers)
            assert stored["questions"] == len(answers)
            assert stored["accuracy"] == round(max(often.values()) / len(answers), 4)
            assert often[stored["majority_answer"]] == max(often.values())
    assert majority_baselines(emoji64.questions) == emoji64.baselines


def test_the_blind_answerer_uses_the_choices():
    def ask(answer: str, *choices: str) -> Question:
        return Question("a", "colour", "What colour is this?", answer, choices, "train")

    asked = [
        ask("red", "red", "blue"),
        ask("red", "red", "green"),
        ask("blue", "blue", "green"),
        ask("blue", "blue", "red"),
    ]
    # red and blue are equally common; blue comes first in the alphabet: wrong once of four.
    assert majority_baselines(asked)["colour"]["train"]["accuracy"] == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_partners_use_every_item_once_on_either_side(seed):
    items = [(name, number) for name in "abcd" for number in range(6)]
    random.Random(seed).shuffle(items)
    pairs = balanced_partners(items, lambda one, other: one[0] != other[0])
    assert sorted(left for left, _ in pairs) == sorted(right for _, right in pairs) == sorted(items)
    assert all(left[0] != right[0] for left, right in pairs)


def test_partners_leave_out_who_fits_with_nobody():
    pairs = balanced_partners([1, 2, 3, 99], lambda one, other: 99 not in (one, other))
    assert sorted(left for left, _ in pairs) == [1, 2, 3]
    assert balanced_partners([1], lambda one, other: True) == []


def test_capped_keeps_order_and_number():
    chosen = capped({"a": list(range(10)), "b": [1, 2]}, 3, random.Random(0))
    assert len(chosen["a"]) == 3 and chosen["a"] == sorted(chosen["a"]) and chosen["b"] == [1, 2]


def test_a_label_inside_another_is_no_sure_no(make_sample):
    assert not surely_differ(make_sample("noto/spouting whale"), make_sample("noto/whale"))
    assert surely_differ(make_sample("noto/spouting whale"), make_sample("noto/dolphin"))


def test_one_of_the_family_is_no_sure_no(make_sample):
    person = make_sample("noto/person running", family="running")
    assert not surely_differ(person, make_sample("noto/racer", family="running"))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((230, 50, 50), "red"), ((250, 200, 40), "yellow"), ((40, 40, 45), "black"), ((240, 240, 240), "white"),
     ((130, 80, 60), "brown"), ((40, 110, 220), "blue")],
)  # fmt: skip
def test_dominant_colour_ignores_what_is_transparent(rgb, name):
    pixels = np.zeros((10, 10, 4), np.uint8)
    pixels[:3] = (*rgb, 255)
    assert dominant_colour(Image.fromarray(pixels)) == name


def test_no_colour_dominates_a_harlequin():
    pixels = np.full((9, 9, 4), 255, np.uint8)
    pixels[:3, :, :3], pixels[3:6, :, :3], pixels[6:, :, :3] = (230, 50, 50), (40, 110, 220), (50, 160, 60)
    assert dominant_colour(Image.fromarray(pixels)) is None
    assert dominant_colour(Image.new("RGBA", (4, 4))) is None
