"""Question sets in which no word gives the answer away.

Pure functions over lists; the questions themselves are in questions.py and scene_questions.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

__all__ = ["balanced_partners", "capped"]

Item = TypeVar("Item")


def balanced_partners(items: Sequence[Item], differ: Callable[[Item, Item], bool]) -> list[tuple[Item, Item]]:
    """Pairs (item, other) in which every item stands once on the left and once on the right, and `differ` holds.

    Asking yes about the left and no about the right then makes a name alone worth nothing.  Neighbours in `items` are
    paired where they can be, so sorting the likeness in makes the no's hard; items that fit with nobody are left out.
    """
    items = list(items)
    while len(items) > 1:
        others = items[1:] + items[:1]
        lonely = [index for index in range(len(items)) if not _settle(index, items, others, differ)]
        if not lonely:
            return list(zip(items, others, strict=True))
        # One at a time, the one that fits with fewest: its neighbours may do well without it.
        del items[min(lonely, key=lambda index: sum(differ(items[index], other) for other in items))]
    return []


def _settle(index: int, items: list[Item], others: list[Item], differ: Callable[[Item, Item], bool]) -> bool:
    """Make `index` and its partner differ by swapping partners with the nearest item that allows it."""
    if differ(items[index], others[index]):
        return True
    for distance in range(1, len(items)):
        for swap in {(index + distance) % len(items), (index - distance) % len(items)}:
            if differ(items[index], others[swap]) and differ(items[swap], others[index]):
                others[index], others[swap] = others[swap], others[index]
                return True
    return False


def capped(groups: Mapping[str, Sequence[Item]], most: int, rng: random.Random) -> dict[str, list[Item]]:
    """At most `most` items of every group, chosen at random, in their old order."""
    chosen = {}
    for name in sorted(groups):
        indices = rng.sample(range(len(groups[name])), min(most, len(groups[name])))
        chosen[name] = [groups[name][index] for index in sorted(indices)]
    return chosen
