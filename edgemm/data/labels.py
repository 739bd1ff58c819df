"""What each emoji is called, and which emoji must stay together when a dataset is split.

Labels, tags and groups are emojibase's, joined on code points without fe0f.  A *family* is a label with gender,
direction, hour, moon phase and colour taken out: man and woman running, twenty-four clock faces, ten colours of
heart.  A split by label would put one red heart in training and the orange one in the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm.data.sources import read_json

__all__ = [
    "COLOURS",
    "Label",
    "bare_hexcode",
    "family_of",
    "names_gender",
    "read_labels",
    "slug",
    "NUMBERS",
    "is_countable",
    "is_plural",
    "asked_words",
    "coloured_words",
    "plain_words",
    "plural",
    "with_article",
]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
GENDERED = {
    "man": "person",
    "woman": "person",
    "men": "people",
    "women": "people",
    "boy": "child",
    "girl": "child",
}
SAME_FAMILY = {  # pairs that only Unicode's history tells apart, or that share a drawing
    "prince": "person with crown",
    "princess": "person with crown",
    "old man": "older person",
    "old woman": "older person",
    "merman": "merperson",
    "mermaid": "merperson",
    "mrs. claus": "santa claus",
    "mx claus": "santa claus",
    "breast-feeding": "person feeding baby",
    "woman and man holding hands": "people holding hands",
    "men’s room": "restroom",
    "women’s room": "restroom",
    "female sign": "gender sign",
    "male sign": "gender sign",
    "closed book": "book",  # the red one of green, blue and orange book
    "grinning cat": "cat",  # fluent draws one picture for both
    "white square button": "black medium square",  # likewise
}
KEPT = {"left luggage", "leafy green"}  # words that look like a direction or a colour, and are not
HOUR = re.compile(r"(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)( o’clock|-thirty)")
MOON = re.compile(r"(new|full|(waxing|waning) (crescent|gibbous)|(first|last) quarter) moon")
DIRECTION = re.compile(
    r"(up|down|left|right)(-(up|down|left|right|facing))?|(up|down|left|right)wards|front-facing|oncoming"
)
SIZE = re.compile(r"small|medium|medium-small|large")


@dataclass(frozen=True)
class Label:
    """One emoji's words."""

    hexcode: str  # lower case, without fe0f
    text: str  # lower case English
    tags: tuple[str, ...]
    group: str  # "animals-nature"
    subgroup: str  # "animal-mammal"
    family: str


def bare_hexcode(code: str) -> str:
    """Lower case, without the variation selector that some sets write and others do not."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def slug(text: str) -> str:
    """The icon sets' spelling of a label: "man’s shoe" -> "mans-shoe"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "")).strip("-")


def read_labels(tarball: Path) -> dict[str, Label]:
    """hexcode -> Label in emojibase's order; letters for building flags and skin swatches are left out."""
    meta = read_json(tarball, "meta/groups.json")
    entries = [entry for entry in read_json(tarball, "en/data.json") if "group" in entry]
    entries = [entry for entry in entries if meta["groups"][str(entry["group"])] != "component"]
    entries.sort(key=lambda entry: entry["order"])
    every_label = frozenset(entry["label"].lower() for entry in entries)
    labels = {}
    for entry in entries:
        text, group = entry["label"].lower(), meta["groups"][str(entry["group"])]
        subgroup = meta["subgroups"][str(entry["subgroup"])]
        family = family_of(text, group, subgroup, every_label)
        code = bare_hexcode(entry["hexcode"])
        labels[code] = Label(code, text, tuple(entry.get("tags", ())), group, subgroup, family)
    return labels


def family_of(text: str, group: str, subgroup: str, every_label: Iterable[str]) -> str:
    """The label without what makes it one of a set: gender, direction, hour, phase, colour, size of a square."""
    if subgroup in ("country-flag", "subdivision-flag") or text in KEPT:
        return text
    if HOUR.fullmatch(text):
        return "clock face"
    if MOON.fullmatch(text):
        return "moon phase"
    text = SAME_FAMILY.get(text, text)
    if group == "people-body":
        text = _without_gender(text, every_label)
    words = text.replace(": facing right", "").replace("light blue", "blue").replace("blond", "brown").split()
    kept = [word for word in words if word not in COLOURS and not DIRECTION.fullmatch(word)]
    if subgroup == "geometric":
        kept = [word for word in kept if not SIZE.fullmatch(word)]
    text = " ".join(kept or words)
    if group == "animals-nature" and text.endswith(" face") and text.removesuffix(" face") in every_label:
        text = text.removesuffix(" face")  # "dog face" would give "dog" away
    return text


def names_gender(text: str) -> bool:
    """Whether the label says man, woman, boy, girl or a gendered title: never asked about."""
    words = set(re.findall(r"[a-z]+", text))
    titles = {"prince", "princess", "merman", "mermaid", "mrs", "mx", "male", "female", "santa"}
    return bool(words & (set(GENDERED) | titles))


def _without_gender(text: str, every_label: Iterable[str]) -> str:
    head, colon, tail = text.partition(": ")
    if colon and set(re.findall(r"[a-z]+", tail)) <= {"man", "woman", "boy", "girl", "adult", "child"}:
        return head  # "kiss: woman, man", "family: man, girl"
    first, _, rest = text.partition(" ")
    if first in ("man", "woman") and rest in every_label:
        return rest  # "man health worker" beside "health worker"
    return re.sub(r"\b(" + "|".join(GENDERED) + r")\b", lambda word: GENDERED[word.group()], text)


# A little English: articles, plurals and numbers for labels.  It knows the labels we have, not the language.

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
    if ":" in label or head in UNCOUNTABLE or label.split()[0] in ("no", "mount") or is_plural(head):
        return label
    return f"{'an' if _sounds_like_vowel(label) else 'a'} {label}"


def plain_words(label: str, synonyms: Sequence[str] = ()) -> list[str]:
    """Ways in which people ask for it, shortest first: "heart", "a heart", "a picture of a heart", "love"."""
    said = [label, *synonyms, with_article(label), f"a picture of {with_article(label)}"]
    return [*dict.fromkeys(sorted(said, key=len))]


def coloured_words(label: str, synonyms: Sequence[str], colour: str | None) -> list[str]:
    """The same of a thing in a colour: "a red heart", "a picture of a red heart"; none where the name tells it."""
    if not colour or colour in label.split():
        return []
    named = [with_article(f"{colour} {name}") for name in (label, *synonyms)]
    return [*dict.fromkeys([*named, f"a picture of {named[0]}"])]


ASKED = (  # "a red car" in the place of {}
    "draw {}", "please draw {}", "an image of {}", "an icon of {}", "show me {}", "I want {}", "can you draw {}?",
    "{} on white", "make {}", "a small drawing of {}", "{}, please", "I would like to see {}",
)  # fmt: skip
TURNED = ("{1} in {0}", "{1}, {0}", "{1} painted {0}", "draw {1} in {0}")  # colour and "a car"


def asked_words(label: str, colour: str | None, places: Sequence[float]) -> list[str]:
    """One way to ask for it for each of `places`, in [0, 1): "please draw a red heart"; the last turns the words around
    where a colour is told: "a heart in red"."""
    named = with_article(label if not colour or colour in label.split() else f"{colour} {label}")
    said = [ASKED[int(place * len(ASKED))].format(named) for place in places]
    if named != with_article(label):
        said[-1] = TURNED[int(places[-1] * len(TURNED))].format(colour, with_article(label))
    return said


def plural(label: str) -> str:
    """ "ducks", "red apples", "mice": more than one of it."""
    words = label.split()
    at = _head_index(words)
    words[at] = _plural_word(words[at])
    return " ".join(words)


def is_countable(label: str) -> bool:
    """Whether one can say "two" of it, plainly: not of bread, of fireworks, nor of a couch and lamp."""
    head = _head(label)
    return ":" not in label and label.endswith(head) and head not in UNCOUNTABLE and not is_plural(head)


def _head_index(words: list[str]) -> int:
    """The noun: the word before a preposition, or the last one."""
    for index, word in enumerate(words):
        if index and word in ("with", "of", "in", "on", "behind", "at", "for", "and", "without", "facing", "showing"):
            return index - 1
    return len(words) - 1


def _head(label: str) -> str:
    words = label.split()
    return words[_head_index(words)]


def is_plural(word: str) -> bool:
    """Whether the word means more than one, as far as its letters tell."""
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
