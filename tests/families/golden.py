"""Recorded answers of published models' own code: where they lie, and how to open and export what they were made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgemm.families.folder import Found, find_foreign

__all__ = ["GOLDEN", "Cases", "answers", "found_at", "worst"]

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "golden"  # those that are too large for this repository


class Cases:
    """One model's recorded arrays."""

    def __init__(self, name: str) -> None:
        found = next((place / name for place in (GOLDEN, BESIDE) if (place / name).is_dir()), None)
        if found is None:
            pytest.skip(f"no recorded answers of {name} in {GOLDEN}, nor in {BESIDE}: too large to be kept here")
        self.folder = found
        self.arrays = np.load(self.folder / "cases.npz")

    def __contains__(self, name: str) -> bool:
        return name in self.arrays.files

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def number(self, name: str) -> float:
        return float(self.arrays[name])

    def text(self, name: str) -> str:
        array = self.arrays[name]
        return bytes(array).decode() if array.dtype == np.uint8 else str(array)


def answers(name: str) -> dict[str, np.ndarray]:
    """name of an array -> what was recorded."""
    with np.load(GOLDEN / name / "cases.npz") as cases:
        return {key: cases[key] for key in cases.files}


def found_at(folder: Path, **others: Path) -> Found:
    """A published folder, and those that its parts lie in."""
    found = find_foreign(folder)
    assert found is not None
    return dataclasses.replace(found, others=others)


def worst(found, wanted) -> float:
    """The largest difference."""
    a, b = (np.asarray(array, dtype=np.float64) for array in (found, wanted))
    assert a.shape == b.shape
    return float(np.abs(a - b).max())
