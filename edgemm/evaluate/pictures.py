"""The samples that a suite takes, and their real pictures at the size of a drawing.

Axes: b pictures, S side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from edgemm.data.format import Dataset, Sample
from edgemm.data.splits import stable_fraction
from edgemm.picture import fit_square, open_picture

__all__ = ["real_pictures", "resized", "some"]

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
