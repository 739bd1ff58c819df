"""Recorded answers of published models' own code: where they lie, and how to open and export what they were made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from edgemm.families.folder import Found, find_foreign

__all__ = ["GOLDEN", "answers", "found_at", "worst"]

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden"


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
