"""When a reply is right.

Both sides are lower-cased; accents, punctuation and a leading "a", "an" or "the" go; spaces are evened: "A red apple."
is "red apple".  A label is right when it is the sample's label, word for word; the second, kinder count accepts any of
its tags too.  Every other kind has one right answer, that of the question.  Where it is yes or no, the first word of
the reply counts (as in POPE, arXiv:2305.10355), so "Yes, it is." is a yes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from edgemm.data.format import Question

__all__ = ["is_any_of", "is_right", "is_yes_no", "normalised", "said_yes"]

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
