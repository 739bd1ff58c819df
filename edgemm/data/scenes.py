"""Where the things of a scene stand: boxes that never touch, and the relations that hold between them.

Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive, the origin at the top left.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from edgemm.data.format import Question, Sample
from edgemm.data.labels import plural, with_article
from edgemm.data.questions import balanced_partners, capped

__all__ = [
    "OPPOSITE",
    "RELATIONS",
    "Box",
    "holds",
    "place",
    "place_in_cells",
    "count_questions",
    "existence_questions",
    "names_in",
    "relation_questions",
]

Box = tuple[int, int, int, int]
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
GAP = 3 / 64  # of the canvas, between any two boxes
MARGIN = 1 / 64
TRIES = 400


def place(sides: Sequence[int], size: int, relation: str | None, rng: random.Random) -> list[Box]:
    """Random boxes with these sides on a square canvas; the first is in `relation` to the second, if one is given."""
    while True:
        boxes: list[Box] = []
        for side in sides:
            box = _free_box(side, size, boxes, rng)
            if box is None:
                break
            boxes.append(box)
        if len(boxes) == len(sides) and (relation is None or holds(relation, boxes[0], boxes[1])):
            return boxes


def place_in_cells(sides: Sequence[int], size: int, relation: str | None) -> list[Box]:
    """Boxes in the middle of equal cells in reading order: one, two side by side (or as `relation` says), or four."""
    if len(sides) > 4:
        raise ValueError(f"{len(sides)} boxes for four cells")
    across, down = (1 if len(sides) == 1 else 2), (1 if len(sides) <= 2 else 2)
    cells = [
        ((2 * column + 1) / (2 * across), (2 * row + 1) / (2 * down)) for row in range(down) for column in range(across)
    ]
    if relation in ("right of", "below"):
        cells.reverse()
    if relation in ("above", "below"):
        cells = [(y, x) for x, y in cells]
    corners = [[round(middle * size - side / 2) for middle in cell] for cell, side in zip(cells, sides, strict=False)]
    return [(left, top, left + side, top + side) for (left, top), side in zip(corners, sides, strict=True)]


def holds(relation: str, one: Sequence[float], other: Sequence[float], slack: float = 0.5) -> bool:
    """Whether `one` is left of, right of, above or below `other`.

    It must be clear of it on that axis, and off it on the other by no more than `slack` times the distance.
    """
    if relation in ("right of", "below"):
        return holds(OPPOSITE[relation], other, one, slack)
    axis = 0 if relation == "left of" else 1
    along, across = (abs(_middle(one, a) - _middle(other, a)) for a in (axis, 1 - axis))
    return one[axis + 2] <= other[axis] and across <= slack * along


def _middle(box: Sequence[float], axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2


def _free_box(side: int, size: int, taken: Sequence[Box], rng: random.Random) -> Box | None:
    gap, margin = round(GAP * size), round(MARGIN * size)
    for _ in range(TRIES):
        left, top = (rng.randint(margin, size - margin - side) for _ in range(2))
        box = (left, top, left + side, top + side)
        if all(_apart(box, other, gap) for other in taken):
            return box
    return None


def _apart(one: Box, other: Box, gap: int) -> bool:
    return any(one[a + 2] + gap <= other[a] or other[a + 2] + gap <= one[a] for a in (0, 1))


# Questions about scenes whose every object is known: how many, where, is there one.
#
#     count       "How many ducks are there?"                 a number; every number is the answer equally often
#     relation    "Is the duck left of the pizza?"            yes once, and once no with the opposite relation
#     existence   "Is there a duck?"                          yes once, and once no with a name from another scene;
#                                                             every name is asked about as often with yes as with no
#
# A scene is a dict with `objects` (each with a `name`) and `relation` (subject, relation, object) or None.


def count_questions(samples: Iterable[Sample], rng: random.Random) -> Iterable[Question]:
    """About scenes that show several of a kind."""
    by_split: defaultdict[str, defaultdict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if (sample.scene or {})["task"] in ("counting", "two kinds"):
            for name, count in sorted(names_in(sample).items()):
                text = f"How many {plural(name)} are there?"
                question = Question(sample.id, "count", text, str(count), None, sample.split)
                by_split[sample.split][question.answer].append(question)
    for _, by_answer in sorted(by_split.items()):
        for _, questions in sorted(capped(by_answer, min(map(len, by_answer.values())), rng).items()):
            yield from questions


def relation_questions(samples: Iterable[Sample]) -> Iterable[Question]:
    """About scenes whose caption states a relation."""
    for sample in samples:
        scene = sample.scene or {}
        if not scene["relation"]:
            continue
        one, other = (scene["objects"][scene["relation"][role]]["name"] for role in ("subject", "object"))
        word = scene["relation"]["relation"]
        for said, answer in ((word, "yes"), (OPPOSITE[word], "no")):
            text = f"Is the {one} {said} the {other}?"
            yield Question(sample.id, "relation", text, answer, ("yes", "no"), sample.split)


def existence_questions(
    samples: Sequence[Sample], may_deny: Callable[[str, str], bool], rng: random.Random
) -> Iterable[Question]:
    """One yes and one no a scene; `may_deny(asked, present)` says whether `asked` is surely not what `present` is."""
    by_pool: defaultdict[tuple[str, str], list[tuple[Sample, str]]] = defaultdict(list)
    for sample in samples:
        by_pool[sample.split, sample.style].append((sample, rng.choice(sorted(names_in(sample)))))

    def differ(one: tuple[Sample, str], other: tuple[Sample, str]) -> bool:
        return all(may_deny(other[1], present) for present in names_in(one[0]))

    for _, asked in sorted(by_pool.items()):
        rng.shuffle(asked)
        for (sample, name), (_, absent) in balanced_partners(asked, differ):
            for said, answer in ((name, "yes"), (absent, "no")):
                yield Question(
                    sample.id, "existence", f"Is there {with_article(said)}?", answer, ("yes", "no"), sample.split
                )


def names_in(sample: Sample) -> Counter[str]:
    """How often each name occurs in the scene."""
    return Counter(item["name"] for item in (sample.scene or {})["objects"])
