"""Drawings of composed scenes, judged region by region: as many things as asked, each named, and where they should be.

What is not white falls into regions that do not touch.  A judge that learned from another artist's scenes guesses at
each, and a name counts among its first `NAMED` guesses.  A drawing is right when it has as many regions as its prompt
has things, every region is one of them, and they stand in the relation that was asked.  Real scenes are judged, too.
Axes: h height, w width of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from edgemm.data.format import Dataset, Sample
from edgemm.data.scenes import Box, holds
from edgemm.data.writer import SCORER_STYLE
from edgemm.errors import InputError
from edgemm.evaluate.icons_suite import INK
from edgemm.evaluate.judge import GRID_WIDTHS, Eye, LabelScorer
from edgemm.evaluate.metrics import Share, share
from edgemm.evaluate.subject import DRAWN_SPLITS, Drawings, Subject, draw_samples, real_pictures, some

__all__ = ["ScenesPart", "ScenesResult", "check_scorer", "regions", "run_scenes_suite"]

SPECK = 0.004  # of the canvas: less is noise
NAMED = 5  # first guesses of the judge among which a region's name counts
TAUGHT = 1500  # scenes that the judge learns from


@dataclass(frozen=True)
class ScenesPart:
    """The scores of one split, of drawings and of the real scenes."""

    tasks: dict[str, Share]  # "relation", "counting", "two kinds": all of it right
    right: Share
    count: Share  # as many regions as things
    real: Share
    real_count: Share
    shuffled: Share  # drawings held against another drawing's prompt


@dataclass(frozen=True, eq=False)
class ScenesResult:
    judge: str
    parts: dict[str, ScenesPart]
    drawings: dict[str, Drawings]
    records: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Looked:
    """What one picture shows: its regions, and for each the judge's first guesses."""

    boxes: list[Box]
    guesses: list[set[str]]

    def shows(self, scene: dict[str, Any]) -> bool:
        things = scene["objects"]
        if len(self.boxes) != len(things):
            return False
        return any(self._matches(scene, order) for order in permutations(range(len(things))))

    def _matches(self, scene: dict[str, Any], order: Sequence[int]) -> bool:
        """Whether region order[k] is thing k."""
        if any(
            thing["name"] not in self.guesses[region] for thing, region in zip(scene["objects"], order, strict=True)
        ):
            return False
        held = scene["relation"]
        return not held or holds(
            held["relation"], self.boxes[order[held["subject"]]], self.boxes[order[held["object"]]]
        )


def run_scenes_suite(subject: Subject, dataset: Dataset, limit: int | None) -> ScenesResult:
    """At most `limit` drawings a split of a compose dataset.

    Raises InputError where no other artist's scenes are in it, of which the judge could learn.
    """
    eye = Eye()
    judge = _judge(dataset, subject.drawing_size, eye)
    parts, drawings, records = {}, {}, []
    for split, what in DRAWN_SPLITS.items():
        samples = some([one for one in dataset.split(split) if _known(one, judge)], limit, "id")
        if not samples:
            continue
        found = draw_samples(subject, dataset, samples, 0, what)
        looked = {
            name: _look(pictures, judge, eye) for name, pictures in (("drawn", found.drawn), ("real", found.real))
        }
        parts[split], drawings[split] = _part(samples, looked["drawn"], looked["real"]), found
        records += [
            {
                "sample": one.id,
                "split": split,
                "task": (one.scene or {})["task"],
                "prompt": prompt,
                "seed": seed,
                "passed": seen.shows(one.scene or {}),
            }
            for one, prompt, seed, seen in zip(samples, found.prompts, found.seeds, looked["drawn"], strict=True)
        ]
    return ScenesResult(f"regions, among {len(judge.labels)} names", parts, drawings, records)


def _part(samples: Sequence[Sample], drawn: Sequence[Looked], real: Sequence[Looked]) -> ScenesPart:
    scenes = [one.scene or {} for one in samples]
    right = [seen.shows(scene) for seen, scene in zip(drawn, scenes, strict=True)]
    tasks = sorted({scene["task"] for scene in scenes})
    return ScenesPart(
        tasks={
            task: share([good for good, scene in zip(right, scenes, strict=True) if scene["task"] == task])
            for task in tasks
        },
        right=share(right),
        count=_counted(drawn, scenes),
        real=share([seen.shows(scene) for seen, scene in zip(real, scenes, strict=True)]),
        real_count=_counted(real, scenes),
        shuffled=share([seen.shows(scene) for seen, scene in zip(drawn, scenes[1:] + scenes[:1], strict=True)]),
    )


def _counted(looked: Sequence[Looked], scenes: Sequence[dict[str, Any]]) -> Share:
    return share([len(seen.boxes) == len(scene["objects"]) for seen, scene in zip(looked, scenes, strict=True)])


def _known(sample: Sample, judge: LabelScorer) -> bool:
    return all(thing["name"] in judge.labels for thing in (sample.scene or {})["objects"])


def check_scorer(dataset: Dataset) -> None:
    """InputError where no other artist's scenes are in the dataset."""
    if not any(one.style == SCORER_STYLE for one in dataset.samples):
        raise InputError(
            f"{dataset.path}: no scene is {SCORER_STYLE}'s, so nobody is left to train a judge on; "
            f"rebuild it with: edgemm data compose --styles fluent noto {SCORER_STYLE}"
        )


def _judge(dataset: Dataset, size: int, eye: Eye) -> LabelScorer:
    """Taught by single things out of another artist's scenes, as large as they stand there."""
    check_scorer(dataset)
    taught = some([one for one in dataset.samples if one.style == SCORER_STYLE], TAUGHT, "id")
    things, names = [], []
    for sample, picture in zip(taught, real_pictures(dataset, taught, size), strict=True):
        scale = size / (sample.scene or {})["size"]
        for thing in (sample.scene or {})["objects"]:
            left, top, right, bottom = (round(edge * scale) for edge in thing["box"])
            things.append(_cut(picture, (left, top, right, bottom)))
            names.append(thing["name"])
    return LabelScorer.fit(eye.look(np.stack(things), "training the judge").grids, names, GRID_WIDTHS)


def _look(pictures: np.ndarray, judge: LabelScorer, eye: Eye) -> list[Looked]:
    found = [regions(picture) for picture in pictures]
    cut = [_cut(picture, box) for picture, boxes in zip(pictures, found, strict=True) for box in boxes]
    if not cut:
        return [Looked([], []) for _ in found]
    best = np.argsort(-judge.scores(eye.look(np.stack(cut), "judging regions").grids, judge.labels), axis=1)[:, :NAMED]
    guesses = iter({judge.labels[column] for column in row} for row in best)
    return [Looked(boxes, [next(guesses) for _ in boxes]) for boxes in found]


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """What stands in the box, enlarged onto a white square of the picture's size."""
    from PIL import Image

    left, top, right, bottom = box
    side, whole = max(right - left, bottom - top, 1), picture.shape[0]
    square = Image.new("RGB", (side, side), "white")
    thing = Image.fromarray(picture[top:bottom, left:right])
    square.paste(thing, ((side - thing.width) // 2, (side - thing.height) // 2))
    return np.asarray(square.resize((whole, whole), Image.Resampling.LANCZOS))


def regions(rgb: np.ndarray) -> list[Box]:
    """The boxes of what is not white in a picture (h, w, 3): pixels that touch, diagonally or over one pixel, are one.

    Every pixel takes the largest number around it until nothing changes, so a region ends with one number.
    """
    ink = rgb.min(axis=-1) < INK
    near = _around(ink)
    number = np.where(near, np.arange(1, near.size + 1).reshape(near.shape), 0)
    while True:
        grown = np.where(near, _around(number), 0)
        if np.array_equal(grown, number):
            break
        number = grown
    boxes = []
    for one in np.unique(number[ink]):
        inside = ink & (number == one)
        if inside.sum() >= SPECK * ink.size:
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return boxes


def _around(values: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its eight neighbours."""
    padded = np.pad(values, 1)
    rows, columns = values.shape
    return np.max([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
