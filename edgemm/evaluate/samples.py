"""The samples that a suite takes, and their real pictures at the size of a drawing.

Axes: b pictures, S side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgemm import progress
from edgemm.bundle.picture import fit_square, open_picture
from edgemm.data.format import Dataset, Sample
from edgemm.data.splits import stable_fraction
from edgemm.evaluate.subject import Subject

__all__ = ["real_pictures", "resized", "some", "DRAWN_SPLITS", "Drawings", "draw_samples"]

Item = TypeVar("Item")


def some(items: Iterable[Item], limit: int | None, *names: str) -> list[Item]:
    """The first `limit` of a random order that is the same everywhere and always: a smaller limit takes a part of what
    a larger one takes.  `names` are the attributes that tell one item from another."""

    def place(item: Any) -> float:
        return stable_fraction("evaluate", *(getattr(item, name) for name in names))

    return sorted(items, key=place)[:limit]


def real_pictures(dataset: Dataset, samples: Sequence[Sample], size: int) -> np.ndarray:
    """uint8 (b, S, S, 3)."""
    squares = [fit_square(open_picture(dataset.image_path(sample)), size) for sample in samples]
    return np.stack([np.asarray(square, dtype=np.uint8) for square in squares])


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """uint8 (b, H, W, 3) -> uint8 (b, S, S, 3)."""
    return np.stack([np.asarray(fit_square(open_picture(picture), size)) for picture in pictures])


# Lets a model draw the captions of samples, some at a time; every suite that judges drawings starts here.
#
# Axes: b pictures, S side of a drawing.

BATCH = 16
DRAWN_SPLITS = {"train": "seen pairs", "held-out-pair": "held-out pairs"}  # split -> what a person calls it


@dataclass(frozen=True, eq=False)
class Drawings:
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    drawn: np.ndarray  # uint8 (b, S, S, 3)
    real: np.ndarray  # uint8 (b, S, S, 3): the pictures that the prompts are the captions of


def draw_samples(subject: Subject, dataset: Dataset, samples: Sequence[Sample], caption: int, what: str) -> Drawings:
    """Draw caption number `caption` of each sample; picture k has the seed k, so that a rerun draws the same."""
    prompts, seeds = [sample.captions[caption] for sample in samples], list(range(len(samples)))
    starts = range(0, len(samples), BATCH)
    drawn = [
        subject.draw(prompts[start : start + BATCH], seeds[start : start + BATCH])
        for start in progress.track(starts, len(starts), f"drawing {what}", "batches")
    ]
    real = real_pictures(dataset, samples, subject.drawing_size)
    return Drawings(tuple(samples), tuple(prompts), tuple(seeds), np.concatenate(drawn), real)
