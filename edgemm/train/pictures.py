"""A dataset's pictures and captions in memory, picked by split and group.

Knows files and arrays; what a task makes of them is in draw.py and read.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgemm.data.format import Dataset, Sample, read_dataset
from edgemm.errors import InputError
from edgemm.train.recipe import CAPTION

__all__ = ["PicturesOnDisk", "batch_rows", "load_pictures", "pick_samples", "pictures_of"]

IN_MEMORY_BYTES = 4 << 30  # of pictures, in each process


def pick_samples(
    path: str | Path, splits: Sequence[str], groups: Sequence[str], count: int = 0, caption: str = ""
) -> tuple[Dataset, list[Sample]]:
    """The samples of the splits and groups (none: all), or `count` of them, spread evenly over the list.

    With a `caption` such as "{caption}, noto style" each has that one, with its first in it.
    Raises InputError when nothing is left.
    """
    dataset = read_dataset(path)
    samples = [s for s in dataset.samples if s.split in splits and (not groups or s.group in groups)]
    if not samples:
        known = sorted({s.group for s in dataset.samples})
        raise InputError(f"{path}: no picture is in splits {list(splits)} and groups {list(groups)}; groups: {known}")
    if 0 < count < len(samples):
        samples = [samples[row] for row in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    if caption:
        samples = [replace(s, captions=(caption.replace(CAPTION, s.captions[0]),)) for s in samples]
    return dataset, samples


def load_pictures(dataset: Path, samples: Sequence[Sample], size: int) -> Tensor:
    """uint8 (count, 3, size, size)."""
    from PIL import Image

    pictures = np.empty((len(samples), 3, size, size), dtype=np.uint8)
    for row, sample in enumerate(samples):
        with Image.open(dataset / sample.image) as image:
            picture = image.convert("RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)
            pictures[row] = np.asarray(picture).transpose(2, 0, 1)
    return torch.from_numpy(pictures)


class PicturesOnDisk:
    """More pictures than memory should hold: indexed like the tensor of all of them, read when a batch asks."""

    def __init__(self, dataset: Path, samples: Sequence[Sample], size: int) -> None:
        self.dataset, self.samples, self.size = dataset, samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        return load_pictures(self.dataset, [self.samples[row] for row in rows], self.size)


def pictures_of(dataset: Path, samples: Sequence[Sample], size: int) -> Tensor | PicturesOnDisk:
    """All pictures, uint8 (count, 3, size, size): in memory where they fit."""
    if len(samples) * 3 * size * size > IN_MEMORY_BYTES:
        return PicturesOnDisk(dataset, samples, size)
    return load_pictures(dataset, samples, size)


def batch_rows(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Rows of a step's batch: each pass over the data is a new permutation; a step needs no memory of earlier ones."""
    rows = []
    position = step * batch
    while len(rows) < batch:
        epoch, offset = divmod(position + len(rows), count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        rows += order[offset : offset + batch - len(rows)].tolist()
    return np.array(rows)
