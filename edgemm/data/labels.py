"""What each emoji is called, and which emoji must stay together when a dataset is split.

Labels, tags and groups are emojibase's, joined on code points without fe0f.  A *family* is a label with gender,
direction, hour, moon phase and colour taken out: man and woman running, twenty-four clock faces, ten colours of
heart.  A split by label would put one red heart in training and the orange one in the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgemm.data.sources import read_json

__all__ = ["COLOURS", "Label", "bare_hexcode", "family_of", "names_gender", "read_labels", "slug"]

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
