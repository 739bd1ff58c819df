"""Lets a model draw the captions of samples, some at a time; every suite that judges drawings starts here.

Axes: b pictures, S side of a drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.data.format import Dataset, Sample
from edgemm.data.progress import progress
from edgemm.evaluate.pictures import real_pictures
from edgemm.evaluate.subject import Subject

__all__ = ["DRAWN_SPLITS", "Drawings", "draw_samples"]

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
        for start in progress(starts, len(starts), f"drawing {what}")
    ]
    real = real_pictures(dataset, samples, subject.drawing_size)
    return Drawings(tuple(samples), tuple(prompts), tuple(seeds), np.concatenate(drawn), real)
