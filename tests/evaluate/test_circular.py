"""Choices in every order: a reader who sees is right in all, one who has a favourite letter in none."""

from __future__ import annotations

import pytest

from edgemm.data.format import Question
from edgemm.evaluate.read_suite import chosen, circular_prompts, has_choices

OPTIONS = ("an animal", "food or drink", "an object", "a symbol")
QUESTION = Question("noto/dog", "group", "What kind of thing is this?", "an animal", OPTIONS, "train")


def test_every_option_stands_once_at_every_letter():
    prompts = circular_prompts(QUESTION)
    assert len(prompts) == 4
    for letter in range(4):
        assert {options[letter] for _, options in prompts} == set(OPTIONS)
    assert prompts[1][0].splitlines()[:3] == ["What kind of thing is this?", "A. food or drink", "B. an object"]


def test_a_favourite_letter_is_right_once_and_never_in_every_order():
    right = [chosen("A", options) == QUESTION.answer for _, options in circular_prompts(QUESTION)]
    assert sum(right) == 1 and not all(right)
    assert all(chosen("An animal.", options) == QUESTION.answer for _, options in circular_prompts(QUESTION))


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("B", "food or drink"),
        ("(c)", "an object"),
        ("B. food or drink", "food or drink"),
        ("A animal", "an animal"),  # the letter, or the article: the same here
        ("animal", "an animal"),
        ("It is an object, I think", "an object"),
        ("an object or a symbol", None),
        ("E", None),
        ("", None),
        ("cat", None),
    ],
)
def test_a_reply_names_an_option_by_letter_or_by_words(reply, option):
    assert chosen(reply, OPTIONS) == option


def test_yes_or_no_is_no_multiple_choice():
    assert has_choices(QUESTION)
    assert not has_choices(Question("noto/dog", "yesno", "Is this a dog?", "yes", ("yes", "no"), "train"))
    assert not has_choices(Question("noto/dog", "label", "What is this?", "dog", None, "train"))
