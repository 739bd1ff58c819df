"""Multiple choice asked once for every rotation of the options (CircularEval of MMBench, arXiv:2307.06281).

A model that says the first option to anything is right a quarter of the time in one order and never in all of them.
The reply may be an option's letter or its words.  It knows questions and replies, never models.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.data.format import Question
from edgemm.evaluate.answers import is_yes_no, normalised

__all__ = ["chosen", "circular_prompts", "has_choices"]

LETTERS = "ABCDEFGH"


def has_choices(question: Question) -> bool:
    """Yes-or-no questions have a score of their own."""
    return question.choices is not None and 2 < len(question.choices) <= len(LETTERS) and not is_yes_no(question)


def circular_prompts(question: Question) -> list[tuple[str, tuple[str, ...]]]:
    """(message, options in its order), one for each rotation."""
    choices = question.choices or ()
    rotations = [choices[start:] + choices[:start] for start in range(len(choices))]
    return [(_message(question.question, options), options) for options in rotations]


def _message(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([question, *lines, "Answer with one of these."])


def chosen(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names, by letter or by words; None where it is neither or more than one."""
    said = normalised(reply)
    exact = [option for option in options if normalised(option) == said]
    if exact:
        return exact[0]
    head, _, rest = reply.strip().partition(" ")
    letter = head.strip("().:").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        option = options[LETTERS.index(letter)]
        if not rest or normalised(rest) == normalised(option):
            return option
    inside = [option for option in options if f" {normalised(option)} " in f" {said} "]
    return inside[0] if len(inside) == 1 else None
