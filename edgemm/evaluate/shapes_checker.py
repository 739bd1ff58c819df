"""Does a picture show what a shapes caption, or a graph of things, claims?  Exact, without a model.

A pixel is a fill on white that covers so much of it: that of the eight which leaves least unexplained.  So a pixel that
a red star half covers is half a red one, not a pink one.  Connected pixels that are covered are objects; an object's
colour is the nearest of the eight in Lab, its shape the one which, drawn over the object to a quarter of a pixel,
covers the same: in ten pixels a star still is one.  Specks are ignored; everything else counts: a fourth square fails
"three squares", and a fifth object of any kind fails "a circle".

It judges the scene's `wanted` and `relation`, not where exactly things stand: a drawing model chooses that freely.
Axes: h, w pixels, c fills.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edgemm.data.format import Sample
from edgemm.data.icons import lab
from edgemm.data.scenes import RELATIONS, Box, holds
from edgemm.data.shapes import COLOURS, SHAPES, draw_shape

__all__ = ["CheckResult", "Found", "check_graph", "check_sample", "check_scene", "find_objects"]

COVERED = 0.45  # of a pixel: less is ground
SPECK = 0.003  # of the canvas: smaller pieces are noise
COLOUR_LIMIT = 35.0  # Lab distance beyond which a colour has no name here
SHAPE_LIMIT = 0.75  # overlap below which a piece is no shape
MIXED = 0.2  # of a piece in a second colour: two objects that touch
SLACK = 1.0  # of a relation: up to the diagonal; what shapes.py draws stays well within
TEMPLATE = 48  # pixels a side
ASTRAY = 1.5  # pixels, how far an edge of what covers the same may be from the piece's
GROWN = (0.0, 0.5, 1.0)  # pixels on all sides, where that is first looked for: a star's tips cover little
STEPS = (0.5, 0.25)  # pixels, in which it is looked for
LIKELY = 2  # shapes whose edges are looked for
INK = 255.0 - np.array(list(COLOURS.values()))  # (c, 3), what a fill takes from white


@dataclass(frozen=True)
class Found:
    """One object in a picture."""

    shape: str | None  # None: like no template
    colour: str | None  # None: like no named colour
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class CheckResult:
    """The verdict, why, and what was seen."""

    passed: bool
    reason: str
    found: tuple[Found, ...]


def check_scene(image: Image.Image | np.ndarray, scene: dict[str, Any]) -> CheckResult:
    """Judge an RGB picture of any size, (h, w, 3) in 0..255 or a PIL image, against a scene made by shapes.py."""
    picture = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    found = tuple(find_objects(picture))
    return CheckResult(*_verdict(found, scene), found)


def check_graph(image: Image.Image | np.ndarray, scene: dict[str, Any]) -> CheckResult:
    """Judge a picture against a graph of group `drawn` made by data/graphs.py: its things, and every edge between them
    that says where they stand."""
    seen = check_scene(image, scene)
    if not seen.passed:
        return seen
    boxes = {(one.colour, one.shape): one.box for one in seen.found}
    things = {f"n{item['id']}": (item["colour"], item["name"]) for item in scene["objects"]}
    for edge in scene["graph"]["edges"]:
        one, other = things[edge["source"]], things[edge["target"]]
        if edge["type"] in RELATIONS and not holds(edge["type"], boxes[one], boxes[other], SLACK):
            return CheckResult(False, f"the {' '.join(one)} is not {edge['type']} the {' '.join(other)}", seen.found)
    return seen


def find_objects(rgb: np.ndarray) -> list[Found]:
    """Every object of a picture (h, w, 3) in 0..255, the largest first."""
    ink = 255.0 - rgb
    covers = _covered(ink, INK)
    unexplained = np.linalg.norm(ink[..., None, :] - covers[..., None] * INK, axis=-1)  # (h, w, c)
    fill = unexplained.argmin(-1)  # (h, w)
    covered = np.take_along_axis(covers, fill[..., None], -1)[..., 0]
    pieces = []
    for piece in _pieces(covered > COVERED):
        pieces += _split_by_colour(piece, fill, covered)
    pieces = sorted((piece for piece in pieces if piece.sum() >= SPECK * piece.size), key=lambda piece: -piece.sum())
    taken = np.any(pieces, axis=0) if pieces else None
    return [_describe(piece, ink, taken & ~piece) for piece in pieces]


def _covered(ink: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """How much of each pixel (h, w, 3) each fill (c, 3) covers, (h, w, c)."""
    return np.maximum(ink @ fills.T / (fills**2).sum(1), 0)


def _verdict(found: tuple[Found, ...], scene: dict[str, Any]) -> tuple[bool, str]:
    wanted = scene["wanted"]
    expected = sum(want["count"] for want in wanted)
    if len(found) != expected:
        return False, f"{len(found)} objects, expected {expected}"
    for want in wanted:
        fitting = [one for one in found if _fits(one, want)]
        if len(fitting) != want["count"]:
            what = " ".join(filter(None, (want["colour"], want["shape"])))
            seen = ", ".join(f"{one.colour or 'odd'} {one.shape or 'blob'}" for one in found)
            return False, f"{len(fitting)} of {what}, expected {want['count']}; seen: {seen}"
    relation = scene["relation"]
    if relation:
        subject, other = (scene["objects"][relation[role]]["name"] for role in ("subject", "object"))
        boxes = {one.shape: one.box for one in found}
        if not holds(relation["relation"], boxes[subject], boxes[other], SLACK):
            return False, f"the {subject} is not {relation['relation']} the {other}"
    return True, "as wanted"


def _fits(one: Found, want: dict[str, Any]) -> bool:
    """Any of the eight colours will do where none is asked for; grey is none: a canvas full of noise is no square."""
    return one.shape == want["shape"] and one.colour is not None and want["colour"] in (None, one.colour)


def _describe(piece: np.ndarray, ink: np.ndarray, others: np.ndarray) -> Found:
    fill = _fill(ink[piece])
    distances = np.linalg.norm(lab(255 - fill[None]) - lab(255 - INK), axis=-1)
    nearest = int(distances.argmin())
    covers = np.minimum(_covered(ink, fill[None])[..., 0], 1) * (_grown(piece) & ~others)
    rows, columns = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    likely = sorted((_Fit(covers, shape, box) for shape in SHAPES), key=lambda fit: -fit.first[0])[:LIKELY]
    overlap, shape, fitted = max(fit.best() for fit in likely)
    colour = tuple(COLOURS)[nearest] if distances[nearest] <= COLOUR_LIMIT else None
    return Found(shape, colour, fitted) if overlap >= SHAPE_LIMIT else Found(None, colour, box)


def _fill(ink: np.ndarray) -> np.ndarray:
    """The middle one of those half of the pixels (n, 3) that are covered most."""
    most = np.linalg.norm(ink, axis=1)
    return np.median(ink[most >= np.median(most)], axis=0)


def _grown(mask: np.ndarray) -> np.ndarray:
    """By one pixel on all sides."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


class _Fit:
    """How well a shape, drawn into a box between pixels, covers what an object covers (h, w)."""

    def __init__(self, covers: np.ndarray, shape: str, box: Box) -> None:
        far = math.ceil(ASTRAY)
        left, top = max(0, box[0] - far), max(0, box[1] - far)
        self.covers, self.shape, self.box = covers[top : box[3] + far, left : box[2] + far], shape, box
        self.x, self.y = (start + np.arange(n + 1) for start, n in zip((left, top), self.covers.shape[::-1]))
        grown = ((box[0] - by, box[1] - by, box[2] + by, box[3] + by) for by in GROWN)
        self.first = max((self.overlap(one), one) for one in grown)

    def overlap(self, box: Sequence[float]) -> float:
        """Intersection over union, of shares of pixels."""
        drawn = self._drawn(box)
        return float(np.minimum(self.covers, drawn).sum() / np.maximum(self.covers, drawn).sum())

    def best(self) -> tuple[float, str, tuple[float, float, float, float]]:
        """Overlap, shape and box, edge by edge moved as long as that helps."""
        top, box = self.first
        for step in STEPS:
            helped = True
            while helped:
                helped = False
                for edge, way in product(range(4), (-step, step)):
                    left, upper, right, lower = (at + way * (place == edge) for place, at in enumerate(box))
                    moved = (left, upper, right, lower)
                    if self._may_be(moved) and (found := self.overlap(moved)) > top:
                        box, top, helped = moved, found, True
        return top, self.shape, box

    def _may_be(self, box: Sequence[float]) -> bool:
        near = all(abs(edge - own) <= ASTRAY for edge, own in zip(box, self.box))
        return near and box[2] - box[0] >= 1 and box[3] - box[1] >= 1

    def _drawn(self, box: Sequence[float]) -> np.ndarray:
        """What the shape covers of each pixel."""
        left, top, right, bottom = box
        table = _summed(self.shape)
        table = _between(table, ((self.y - top) / (bottom - top)).clip(0, 1) * TEMPLATE)
        table = _between(table.T, ((self.x - left) / (right - left)).clip(0, 1) * TEMPLATE).T
        return np.diff(np.diff(table, axis=0), axis=1) * ((right - left) * (bottom - top) / TEMPLATE**2)


@lru_cache
def _summed(shape: str) -> np.ndarray:
    """(TEMPLATE + 1, TEMPLATE + 1), how much of a shape lies above and left of there."""
    big = Image.new("L", (TEMPLATE * 4, TEMPLATE * 4), 0)
    draw_shape(ImageDraw.Draw(big), shape, (0, 0, TEMPLATE * 4, TEMPLATE * 4), 255)
    drawn = np.asarray(big.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)) / 255.0
    return np.pad(drawn.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _between(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a table at places between its rows."""
    above = np.minimum(rows.astype(int), len(table) - 2)
    return table[above] + (table[above + 1] - table[above]) * (rows - above)[:, None]


def _split_by_colour(piece: np.ndarray, fill: np.ndarray, covered: np.ndarray) -> list[np.ndarray]:
    """A piece as one object, or as several where objects of different colours touch."""
    counts = np.bincount(
        fill[piece], weights=covered[piece] ** 2, minlength=len(INK)
    )  # an edge says little of a colour
    colours = np.flatnonzero(counts > MIXED * counts.sum())
    if len(colours) < 2:
        return [piece]
    return [part for colour in colours for part in _pieces(piece & (fill == colour))]


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a mask, each as a mask."""
    height, width = mask.shape
    row = width + 2  # with a border of nothing, and as one line, a neighbour is an offset
    left, pieces = bytearray(np.pad(mask, 1).tobytes()), []
    around = (-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1)
    start = left.find(1)
    while start >= 0:
        piece, left[start] = [start], 0
        for place in piece:  # which grows meanwhile
            for near in around:
                if left[place + near]:
                    left[place + near] = 0
                    piece.append(place + near)
        found = np.zeros((height + 2) * row, dtype=bool)
        found[piece] = True
        pieces.append(found.reshape(height + 2, row)[1:-1, 1:-1])
        start = left.find(1, start)
    return pieces


def check_sample(picture: np.ndarray, sample: Sample) -> CheckResult:
    """Judge a picture against the scene of a sample of kind shapes or graphs."""
    scene = sample.scene or {}
    return (check_graph if "graph" in scene else check_scene)(picture, scene)
