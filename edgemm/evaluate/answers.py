"""When a reply is right.

Both sides are lower-cased; accents, punctuation and a leading "a", "an" or "the" go; spaces are evened: "A red apple."
is "red apple".  A label is right when it is the sample's label, word for word; the second, kinder count accepts any of
its tags too.  Every other kind has one right answer, that of the question.  Where it is yes or no, the first word of
the reply counts (as in POPE, arXiv:2305.10355), so "Yes, it is." is a yes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from edgemm.data.format import Question

__all__ = [
    "is_any_of",
    "is_right",
    "is_yes_no",
    "normalised",
    "said_yes",
    "chosen",
    "circular_prompts",
    "has_choices",
    "vqa_accuracy",
    "vqa_normalised",
]

ARTICLES = ("a", "an", "the")


def normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower())
    kept = (_plain(character) for character in plain if not unicodedata.combining(character))
    words = "".join(kept).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ARTICLES else words)


def is_yes_no(question: Question) -> bool:
    return question.choices is not None and set(question.choices) == {"yes", "no"}


def is_right(question: Question, reply: str) -> bool:
    if is_yes_no(question):
        return said_yes(reply) is (question.answer == "yes")
    return normalised(reply) == normalised(question.answer)


def is_any_of(accepted: Iterable[str], reply: str) -> bool:
    return normalised(reply) in {normalised(word) for word in accepted}


def said_yes(reply: str) -> bool | None:
    """None where the reply begins with neither yes nor no."""
    first = normalised(reply).partition(" ")[0]
    return {"yes": True, "no": False}.get(first)


def _plain(character: str) -> str:
    """Letters and digits stay, apostrophes vanish ("can't" is "cant"), the rest parts words."""
    if character.isalnum():
        return character
    return "" if character in "'’" else " "


# Multiple choice asked once for every rotation of the options (CircularEval of MMBench, arXiv:2307.06281).
#
# A model that says the first option to anything is right a quarter of the time in one order and never in all of them.
# The reply may be an option's letter or its words.  It knows questions and replies, never models.

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


# VQAv2's accuracy (arXiv:1612.00837): how many of ten people agree, capped at three; the mean over who is left out.
#
# Its normalisation is kinder than answers.py's rule: number words become digits, every article goes.  Pure functions.

PEOPLE = 10
ENOUGH = 3  # people who agree
VQA_ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}


def vqa_normalised(text: str) -> str:
    """Lower case, no punctuation but a number's own point, digits for number words, no articles."""
    plain = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("\n", " ").replace("'", ""))
    plain = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", plain)
    words = re.sub(r"[^\w.]+", " ", plain).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in VQA_ARTICLES)


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """In [0, 1]. One answer stands for ten people who all gave it; else there must be two or more."""
    said = vqa_normalised(reply)
    given = [vqa_normalised(answer) for answer in (answers if len(answers) > 1 else list(answers) * PEOPLE)]
    agree = [answer == said for answer in given]
    left = [sum(agree) - own for own in agree]  # how many of the others agree, whoever is left out
    return sum(min(1.0, count / ENOUGH) for count in left) / len(left)
