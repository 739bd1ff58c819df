"""A reply is right for what it says, not for how it is written."""

from __future__ import annotations

import pytest

from edgemm.data.format import Question
from edgemm.evaluate.read_suite import is_any_of, is_right, normalised, said_yes


def asked(kind: str, answer: str) -> Question:
    choices = {"label": None, "yesno": ("yes", "no"), "existence": ("yes", "no")}.get(kind, (answer, "else"))
    return Question("fluent/1", kind, "?", answer, choices, "held-out-style")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("A red Apple.", "red apple"),
        ("the  piñata!", "pinata"),
        ("flag: France", "flag france"),
        ("T-shirt", "t shirt"),
        ("woman’s hat", "womans hat"),
        ("a", "a"),  # an article alone is the answer itself: the letter on a button
        ("...", ""),
    ],
)
def test_text_is_evened_out(text, plain):
    assert normalised(text) == plain


def test_a_label_is_right_word_for_word_only():
    assert is_right(asked("label", "red apple"), "A red apple.")
    assert not is_right(asked("label", "red apple"), "apple")
    assert not is_right(asked("label", "red apple"), "")


def test_signs_are_told_apart():
    assert is_right(asked("label", "+"), " + ") and not is_right(asked("label", "+"), "-")
    assert not is_right(asked("label", "+"), "")
    assert not is_any_of(("!", "red apple"), "?")


@pytest.mark.parametrize(("one", "other"), [("कि", "की"), ("か", "が"), ("ดี", "ดู")])
def test_vowel_signs_and_voiced_sounds_are_no_accents(one, other):
    assert is_right(asked("label", one), f"{one}.") and not is_right(asked("label", one), other)
    assert normalised("a red ❤️") == normalised("red ❤")  # the sign that paints an emoji is none either


@pytest.mark.parametrize("words", [("yes", "no"), ("Yes", "No")])
def test_yes_and_no_are_the_same_however_they_are_written(words):
    question = Question("a", "yesno", "Is it red?", words[0], words, "train")
    assert is_right(question, "Yes, it is.") and not is_right(question, "No.")


def test_any_tag_is_the_kinder_count():
    assert is_any_of(("red apple", "fruit"), "Fruit.")
    assert not is_any_of(("red apple", "fruit"), "green apple")


def test_a_choice_is_compared_whole():
    assert is_right(asked("group", "an animal or plant"), "animal or plant")
    assert not is_right(asked("group", "an animal or plant"), "animal")


@pytest.mark.parametrize(
    ("reply", "yes"), [("Yes, it is.", True), ("no", False), ("No yes", False), ("yesterday", None), ("", None)]
)
def test_yes_and_no_are_the_first_word(reply, yes):
    assert said_yes(reply) is yes
    assert is_right(asked("yesno", "yes"), reply) is (yes is True)
    assert is_right(asked("yesno", "no"), reply) is (yes is False)
