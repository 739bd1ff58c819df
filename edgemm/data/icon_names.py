"""What an icon set calls its drawings, in plain English: "heart-off-outline" is "crossed-out heart", outlined.

Sets spell names their own way; `Spelling` says how one of them tells the way of drawing (outlined, filled) from the
thing.  The rules know words, never pixels; which sets there are is in icon_sets.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgemm.data.labels import IRREGULAR, is_plural, plural

__all__ = ["Named", "Spelling", "family_of_icon"]

WAYS = ("outlined", "filled", "thin", "bold", "two-tone", "coloured")
ADJECTIVES = {"broken", "open", "closed", "empty", "full", "half", "active", "locked", "sleeping", "flying", "happy"}
WITH = {  # what sets write behind a thing, and how one would say it
    "plus": "a plus sign", "add": "a plus sign", "minus": "a minus sign", "remove": "a minus sign",
    "subtract": "a minus sign", "check": "a check mark", "checked": "a check mark", "checkmark": "a check mark",
    "x": "a cross", "cancel": "a cross", "dismiss": "a cross", "alert": "an exclamation mark",
    "warning": "an exclamation mark", "exclamation": "an exclamation mark", "question": "a question mark",
    "lock": "a lock", "heart": "a heart", "star": "a star", "clock": "a clock", "cog": "a gear",
    "settings": "a gear", "gear": "a gear", "edit": "a pencil", "pencil": "a pencil", "search": "a magnifying glass",
    "key": "a key", "bolt": "a lightning bolt", "person": "a person", "user": "a person", "dollar": "a dollar sign",
    "percent": "a percent sign", "code": "code brackets", "eye": "an eye", "pin": "a pin", "play": "a play sign",
    "pause": "a pause sign", "stop": "a stop sign", "sparkle": "a sparkle",
}  # fmt: skip
INSIDE = {"circle": "a circle", "square": "a square", "box": "a square", "hexagon": "a hexagon", "diamond": "a diamond"}
POINTING = {"up", "down", "left", "right", "back", "forward"}
POINTERS = {"arrow", "chevron", "caret", "triangle", "hand", "finger"}
KINDS = {"animal", "food", "vehicle", "weather", "fruit", "sport", "sports", "device"}  # "animal-cat" is a cat
SAYS_LITTLE = {"alt", "variant", "simple", "new", "fat", "multiple", "one", "two", "three", "four", "ios", "android"}
NO_THING = re.compile(  # letters, digits, typography, and marks that somebody owns
    r"(?:^|-)(?:alpha|letter|letters|number|numeric|brand|logo|logos|format|text|border|align|font|number|abc|language|"
    r"lang|google|apple|microsoft|facebook|twitter|github|gitlab|linkedin|youtube|instagram|whatsapp|telegram|tiktok|"
    r"android|windows|linux|ubuntu|debian|amazon|aws|azure|steam|xbox|playstation|nintendo|spotify|netflix|slack|"
    r"discord|reddit|pinterest|snapchat|skype|dropbox|figma|adobe|paypal|visa|mastercard|bitcoin|ethereum|docker|npm|"
    r"react|vuejs|angular|python|java|javascript|typescript|php|swift|kotlin|wechat|alipay|tesla|uber|airbnb|chrome|"
    r"firefox|safari|opera|edge|excel|word|powerpoint|outlook|onedrive|onenote|sharepoint|teams|office|html|css)(?:-|$)"
)
LETTERS = frozenset("abcdefghijklmnopqrstuvwyz")  # x is a cross
LONGEST_NAME = 6  # words


@dataclass(frozen=True)
class Named:
    """What one icon shows, and how it is drawn."""

    label: str  # "crossed-out heart"
    family: str  # "heart"
    way: str  # one of WAYS
    stem: str  # the set's name without the way and the size: icons of one stem and way are twins
    rank: int  # among twins the lowest is the one to take


@dataclass(frozen=True)
class Spelling:
    """How one set builds its names."""

    rest: str  # the way of drawing of names that tell none
    suffixes: Mapping[str, str | None] = field(
        default_factory=dict
    )  # ending -> way, better twins first; None: left out

    def read(self, name: str) -> Named | None:
        """None for what is no picture of a thing: a letter, a trademark, a twin in another size."""
        way, stem, rank = self.rest, name, -1
        for ending in sorted(self.suffixes, key=len, reverse=True):
            if name.endswith(f"-{ending}"):
                way, stem, rank = self.suffixes[ending], name.removesuffix(f"-{ending}"), [*self.suffixes].index(ending)
                break
        words = _words(stem)
        if way is None or not words:
            return None
        label = _plain(words)
        return Named(label, family_of_icon(label), way, stem, rank)


def family_of_icon(label: str) -> str:
    """The thing alone: "heart" for "crossed-out heart" and "heart with a plus sign", so that a split parts nothing."""
    thing = re.split(r" with (?=an? )| in (?=an? )| pointing | with code ", label)[0].removeprefix("crossed-out ")
    words = [word for word in thing.split() if word not in ADJECTIVES] or thing.split()
    words[-1] = _singular(words[-1])
    return " ".join(words)


def _words(name: str) -> list[str]:
    """The words of a spelled name without numbers of variants; none where it names nothing that can be drawn."""
    if NO_THING.search(name):
        return []
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", word) for word in name.split("-") if word]
    while len(words) > 1 and (words[-1].isdigit() or words[-1] in SAYS_LITTLE or words[-1] in LETTERS):
        words.pop()
    if len(words) > 1 and words[0] in KINDS:
        words = words[1:]
    fit = all(word.isalpha() and (len(word) > 1 or word == "x") and word.isascii() for word in words)
    return words if fit and len(words) <= LONGEST_NAME and words != ["x"] else []


def _plain(words: list[str]) -> str:
    """Words in the order in which one says them."""
    if len(words) > 1 and words[-1] in ("off", "slash", "disabled"):
        return f"crossed-out {_plain(words[:-1])}"
    if len(words) > 1 and words[-1] in WITH:
        return f"{_plain(words[:-1])} with {WITH[words[-1]]}"
    if len(words) > 1 and words[-1] in INSIDE:
        return f"{_plain(words[:-1])} in {INSIDE[words[-1]]}"
    if len(words) > 1 and words[0] in POINTERS and words[-1] in POINTING:
        start = next(index for index, word in enumerate(words) if word in POINTING)
        if start and set(words[start:]) <= POINTING:
            return f"{' '.join(words[:start])} pointing {' '.join(words[start:])}"
    if len(words) > 1 and words[-1] in ADJECTIVES:
        return f"{words[-1]} {_plain(words[:-1])}"
    return " ".join(words)


SINGULAR = {many: one for one, many in IRREGULAR.items() if many != one}


def _singular(word: str) -> str:
    """The word of which it is the plural, where that can be told; itself otherwise."""
    if word in SINGULAR or not is_plural(word):
        return SINGULAR.get(word, word)
    candidates = (word[:-3] + "y", word[:-2], word[:-1])
    return next((one for one in candidates if len(one) > 2 and word != one and plural(one) == word), word)
