"""Does a picture show what a shapes caption, or a graph of things, claims?  Exact, without a model.

Foreground is what is not white; connected pieces of it are objects; an object's colour is the nearest of the eight in
Lab, its shape the template it overlaps best inside its bounding box.  Specks are ignored; everything else counts: a
fourth square fails "three squares", and a fifth object of any kind fails "a circle".

It judges the scene's `wanted` and `relation`, not where exactly things stand: a drawing model chooses that freely.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edgemm.data.format import Sample
from edgemm.data.icons import lab
from edgemm.data.scenes import RELATIONS, Box, holds
from edgemm.data.shapes import COLOURS, SHAPES, draw_shape

__all__ = ["CheckResult", "Found", "check_graph", "check_sample", "check_scene", "find_objects"]

FOREGROUND = 40.0  # Lab distance from white where a pixel is more than half covered by the palest colour
SPECK = 0.003  # of the canvas: smaller pieces are noise
COLOUR_LIMIT = 35.0  # Lab distance beyond which a colour has no name here
SHAPE_LIMIT = 0.7  # overlap below which a piece is no shape
MIXED = 0.2  # of a piece in a second colour: two objects that touch
SLACK = 1.0  # of a relation: up to the diagonal; what shapes.py draws stays well within
TEMPLATE = 32  # pixels a side


@dataclass(frozen=True)
class Found:
    """One object in a picture."""

    shape: str | None  # None: like no template
    colour: str | None  # None: like no named colour
    box: Box


@dataclass(frozen=True)
class CheckResult:
    """The verdict, why, and what was seen."""

    passed: bool
    reason: str
    found: tuple[Found, ...]


def check_scene(image: Image.Image | np.ndarray, scene: dict[str, Any]) -> CheckResult:
    """Judge an RGB picture, (h, w, 3) in 0..255 or a PIL image, against a scene made by shapes.py.

    A picture smaller than the scene is enlarged first: in 32 pixels one tip of a star is a pixel.
    """
    picture = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))
    if min(picture.size) < scene["size"]:
        picture = picture.resize((scene["size"],) * 2, Image.Resampling.BICUBIC)
    found = tuple(find_objects(np.asarray(picture)))
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
    """Every object of a picture, the largest first."""
    pixels = lab(rgb.reshape(-1, 3)).reshape(*rgb.shape[:2], 3)
    white = lab(np.array([[255, 255, 255]]))[0]
    distance = np.linalg.norm(pixels - white, axis=-1)  # (h, w)
    pieces = []
    for piece in _pieces(distance > FOREGROUND):
        pieces += _split_by_colour(piece, pixels)
    pieces = [piece for piece in pieces if piece.sum() >= SPECK * piece.size]
    return [_describe(piece, pixels) for piece in sorted(pieces, key=lambda piece: -int(piece.sum()))]


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


def _describe(piece: np.ndarray, pixels: np.ndarray) -> Found:
    rows, columns = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    overlaps = {shape: _overlap(piece[box[1] : box[3], box[0] : box[2]], shape) for shape in SHAPES}
    shape = max(SHAPES, key=lambda shape: overlaps[shape])
    distances = _distances(np.median(pixels[piece], axis=0)[None])[0]
    nearest = int(distances.argmin())
    return Found(
        shape if overlaps[shape] >= SHAPE_LIMIT else None,
        tuple(COLOURS)[nearest] if distances[nearest] <= COLOUR_LIMIT else None,
        box,
    )


def _overlap(mask: np.ndarray, shape: str) -> float:
    """Intersection over union of a piece, stretched to the template's square, and the template."""
    stretched = Image.fromarray(mask.astype(np.uint8) * 255).resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)
    piece, template = np.asarray(stretched) / 255.0, _template(shape)
    return float(np.minimum(piece, template).sum() / np.maximum(piece, template).sum())


@lru_cache
def _template(shape: str) -> np.ndarray:
    big = Image.new("L", (TEMPLATE * 8, TEMPLATE * 8), 0)
    draw_shape(ImageDraw.Draw(big), shape, (0, 0, TEMPLATE * 8, TEMPLATE * 8), 255)
    return np.asarray(big.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)) / 255.0


def _distances(points: np.ndarray) -> np.ndarray:
    """Lab distance of (n, 3) points to each of the named colours, (n, c)."""
    return np.linalg.norm(points[:, None] - lab(np.array(list(COLOURS.values())))[None], axis=-1)


def _split_by_colour(piece: np.ndarray, pixels: np.ndarray) -> list[np.ndarray]:
    """A piece as one object, or as several where objects of different colours touch."""
    nearest = np.full(piece.shape, -1)
    nearest[piece] = _distances(pixels[piece]).argmin(axis=1)
    counts = Counter(nearest[piece].tolist())
    colours = [colour for colour, count in counts.items() if count > MIXED * piece.sum()]
    if len(colours) < 2:
        return [piece]
    return [part for colour in colours for part in _pieces(nearest == colour)]


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
