"""A little English: articles, plurals and numbers for labels.  It knows the labels we have, not the language."""

from __future__ import annotations

__all__ = ["NUMBERS", "is_countable", "plural", "with_article"]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NO_ARTICLE = """
aquarius aries away bacon badminton bamboo biting bowling bread breast-feeding broccoli butter camping cancer
capricorn confetti construction cooking copyright coral curry custard divide dizzy dna down fire fog foggy
fondue food garlic gemini hockey ice infinity information jeans lacrosse laughing leo libra lightning locked
luggage mail mate milk minus money multiply oden off ophiuchus paper pisces plus polish polo pong popcorn
prohibited racing radioactive rain registered rice sagittarius sake salt scorpio snow soap spaghetti star-struck
sushi taurus tea tennis thread toast together unlocked up virgo voltage water wireless wood wrestling yarn zzz
"""
UNCOUNTABLE = frozenset(NO_ARTICLE.split())  # and what is no noun
SINGULAR_S = ("ss", "us", "is", "’s")
SINGULARS = {"lens", "cactus", "abacus", "bus", "canvas", "atlas", "christmas", "rhinoceros"}
PLURALS = {"feet", "people", "skis"}
SILENT_OR_YOO = ("unicorn", "uni", "one", "euro", "ewe", "u-", "use", "ufo")
AN_LETTERS = set("aefhilmnorsx")  # letters whose names begin with a vowel
IRREGULAR = {"mouse": "mice", "goose": "geese", "tooth": "teeth", "foot": "feet", "man": "men", "woman": "women",
             "person": "people", "child": "children", "knife": "knives", "leaf": "leaves", "wolf": "wolves",
             "loaf": "loaves", "ox": "oxen", "fish": "fish", "sheep": "sheep", "deer": "deer", "bison": "bison",
             "moose": "moose", "squid": "squid", "shrimp": "shrimp"}  # fmt: skip


def with_article(label: str) -> str:
    """ "a cat", "an owl", "fireworks": the label as one would say it after "Is this"."""
    head = _head(label)
    if label.split()[0] in ("face", "person"):  # "person lifting weights" is one person
        return f"a {label}"
    if ":" in label or head in UNCOUNTABLE or label.split()[0] in ("no", "mount") or _is_plural(head):
        return label
    return f"{'an' if _sounds_like_vowel(label) else 'a'} {label}"


def plural(label: str) -> str:
    """ "ducks", "red apples", "mice": more than one of it."""
    words = label.split()
    at = _head_index(words)
    words[at] = _plural_word(words[at])
    return " ".join(words)


def is_countable(label: str) -> bool:
    """Whether one can say "two" of it, plainly: not of bread, of fireworks, nor of a couch and lamp."""
    head = _head(label)
    return ":" not in label and label.endswith(head) and head not in UNCOUNTABLE and not _is_plural(head)


def _head_index(words: list[str]) -> int:
    """The noun: the word before a preposition, or the last one."""
    for index, word in enumerate(words):
        if index and word in ("with", "of", "in", "on", "behind", "at", "for", "and", "without", "facing", "showing"):
            return index - 1
    return len(words) - 1


def _head(label: str) -> str:
    words = label.split()
    return words[_head_index(words)]


def _is_plural(word: str) -> bool:
    if word in PLURALS:
        return True
    return word.endswith("s") and not word.endswith(SINGULAR_S) and word not in SINGULARS


def _sounds_like_vowel(label: str) -> bool:
    word = label.split()[0].lower()
    if len(word) == 1 or (len(word) == 2 and word in ("ng", "id", "om")):
        return word[0] in AN_LETTERS
    return (word[0] in "aeiou" and not word.startswith(SILENT_OR_YOO)) or word.startswith(("hour", "x-", "8", "18"))


def _plural_word(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    if word.endswith("ato"):
        return word + "es"
    return word + "s"
