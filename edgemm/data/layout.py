"""Where the things of a scene stand: boxes that never touch, and the relations that hold between them.

Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive, the origin at the top left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["OPPOSITE", "RELATIONS", "Box", "holds", "place", "place_in_cells"]

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


def holds(relation: str, one: Box, other: Box, slack: float = 0.5) -> bool:
    """Whether `one` is left of, right of, above or below `other`.

    It must be clear of it on that axis, and off it on the other by no more than `slack` times the distance.
    """
    if relation in ("right of", "below"):
        return holds(OPPOSITE[relation], other, one, slack)
    axis = 0 if relation == "left of" else 1
    along, across = (abs(_middle(one, a) - _middle(other, a)) for a in (axis, 1 - axis))
    return one[axis + 2] <= other[axis] and across <= slack * along


def _middle(box: Box, axis: int) -> float:
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
