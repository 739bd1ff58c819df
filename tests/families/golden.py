"""Recorded answers of published code: tiny checkpoints in published layouts, and what that code said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]

__all__ = ["Cases", "worst"]


class Cases:
    """One model's recorded arrays."""

    def __init__(self, name: str) -> None:
        beside, within = ROOT.parent / "shared" / "golden" / name, ROOT / "tests" / "fixtures" / "golden" / name
        self.folder = within if within.is_dir() else beside
        if not self.folder.is_dir():
            pytest.skip(f"no recorded answers of {name}: neither {within} nor {beside} is there")
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


def worst(found: torch.Tensor | np.ndarray, wanted: torch.Tensor | np.ndarray) -> float:
    """The largest difference."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max())
