"""Who is trained on and who is kept back, decided by a stable hash of the family: adding a style moves nobody.

    held-out-family   families whose hash falls in the first 8 %, in every style; and whatever no training style draws
    held-out-pair     for 10 % of the other families that both fluent and noto draw, noto's pictures: the label is
                      known from fluent, the style from other labels, the pair is new
    held-out-style    noto-v1's pictures of families that are trained on
    scorer            all of twemoji: it trains an independent judge, never the model
    train             the rest

It knows names, never pictures.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

__all__ = [
    "HELD_OUT_FAMILY_SHARE",
    "HELD_OUT_PAIR_SHARE",
    "HELD_OUT_STYLE",
    "SCORER_STYLE",
    "assign_splits",
    "stable_fraction",
]

HELD_OUT_FAMILY_SHARE = 0.08
HELD_OUT_PAIR_SHARE = 0.10
HELD_OUT_STYLE = "noto-v1"
SCORER_STYLE = "twemoji"
PAIR_KEEPS, PAIR_WITHHOLDS = "fluent", "noto"


def stable_fraction(*names: str) -> float:
    """A number in [0, 1) that depends on the names alone, on every machine."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(pictures: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """(style, hexcode) -> split, for (style, hexcode, family) triples."""
    pictures = list(pictures)
    drawn: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for style, hexcode, family in pictures:
        drawn[family][style].add(hexcode)
    withheld = {family for family in drawn if stable_fraction("family", family) < HELD_OUT_FAMILY_SHARE}
    pairs = {family for family in set(drawn) - withheld if _is_pair(family, drawn[family])}

    def split_of(style: str, family: str) -> str:
        if style == SCORER_STYLE:
            return "scorer"
        trained = any(other not in (SCORER_STYLE, HELD_OUT_STYLE) for other in drawn[family])
        if family in withheld or not trained:
            return "held-out-family"
        if style == HELD_OUT_STYLE:
            return "held-out-style"
        return "held-out-pair" if style == PAIR_WITHHOLDS and family in pairs else "train"

    return {(style, hexcode): split_of(style, family) for style, hexcode, family in pictures}


def _is_pair(family: str, styles: dict[str, set[str]]) -> bool:
    kept, withheld = styles.get(PAIR_KEEPS, set()), styles.get(PAIR_WITHHOLDS, set())
    complete = bool(withheld) and withheld <= kept  # every withheld label must be trained in the other style
    return complete and stable_fraction("pair", family) < HELD_OUT_PAIR_SHARE
