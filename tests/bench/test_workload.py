"""Prompts of a chosen length, for tokenizers of different grain."""

from __future__ import annotations

import pytest

from edgemm.bench.workload import fit_prompt, noise_picture

TEMPLATE = 31  # tokens around the user's words


def word_tokens(text: str) -> int:
    return TEMPLATE + len(text.split())


def byte_tokens(text: str) -> int:
    return TEMPLATE + len(text)


@pytest.mark.parametrize("wanted", [33, 128, 500])
def test_a_prompt_has_the_asked_length_where_a_word_is_a_token(wanted):
    assert word_tokens(fit_prompt(word_tokens, wanted)) == wanted


@pytest.mark.parametrize("wanted", [64, 128, 500])
def test_a_prompt_of_bytes_is_off_by_less_than_a_word(wanted):
    assert abs(byte_tokens(fit_prompt(byte_tokens, wanted)) - wanted) < len(" the")


def test_nothing_is_shorter_than_one_word():
    assert fit_prompt(word_tokens, 1) == "the"


def test_the_picture_is_the_same_every_time():
    assert (noise_picture() == noise_picture()).all() and noise_picture().std() > 60
