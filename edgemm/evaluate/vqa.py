"""VQAv2's accuracy (arXiv:1612.00837): how many of ten people agree, capped at three; the mean over who is left out.

Its normalisation is kinder than answers.py's rule: number words become digits, every article goes.  Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["vqa_accuracy", "vqa_normalised"]

PEOPLE = 10
ENOUGH = 3  # people who agree
ARTICLES = {"a", "an", "the"}
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
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """In [0, 1]. One answer stands for ten people who all gave it; else there must be two or more."""
    said = vqa_normalised(reply)
    given = [vqa_normalised(answer) for answer in (answers if len(answers) > 1 else list(answers) * PEOPLE)]
    agree = [answer == said for answer in given]
    left = [sum(agree) - own for own in agree]  # how many of the others agree, whoever is left out
    return sum(min(1.0, count / ENOUGH) for count in left) / len(left)
