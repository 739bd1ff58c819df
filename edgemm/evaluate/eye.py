"""What the judges look with: EfficientNet-Lite0, frozen, as it was trained on photographs.

Three depths are kept, because they see different things: the outline of a drawing, its parts, and what it is.  Each
feature map is averaged onto a 4 x 4 grid, that of the last one.  The last layer's mean is what KID-Lite0 compares.
torch is needed here; label_scorer.py, which judges, is numpy alone.
Axes: b pictures, S side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgemm.config import LITE0_CHANNELS
from edgemm.data.progress import progress
from edgemm.evaluate.pictures import resized
from edgemm.model.lite0 import Lite0, lite0_weights

__all__ = ["GRID_WIDTHS", "Eye", "Looks"]

SIDE = 128  # pixels; smaller pictures are enlarged: Lite0 was made for 224 and sees little in 64
DEPTHS = (7, 10, 14)  # the last block of three stages
SQUARES = (SIDE // 32) ** 2
GRID_WIDTHS = tuple(LITE0_CHANNELS[depth] * SQUARES for depth in DEPTHS)  # columns of `grids`, a depth after the other
BATCH = 32


@dataclass(frozen=True, eq=False)
class Looks:
    """What the eye sees of b pictures."""

    grids: np.ndarray  # (b, sum(GRID_WIDTHS)) float32: three depths on a grid
    pooled: np.ndarray  # (b, 1280) float32: the last layer's mean


class Eye:
    def __init__(self) -> None:
        self.net = Lite0(DEPTHS).eval()
        self.net.load_state_dict(lite0_weights())

    def look(self, pictures: np.ndarray, what: str = "looking") -> Looks:
        """At uint8 (b, S, S, 3)."""
        seen = []
        for start in progress(range(0, len(pictures), BATCH), -(-len(pictures) // BATCH), what):
            chunk = torch.from_numpy(resized(pictures[start : start + BATCH], SIDE).transpose(0, 3, 1, 2).copy())
            seen.append(self._look(chunk.float() / 255))
        grids, pooled = zip(*seen)
        return Looks(np.concatenate(grids), np.concatenate(pooled))

    @torch.no_grad()
    def _look(self, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        features = self.net(pixels).transpose(1, 2)  # (b, channels, squares)
        middle = sum(LITE0_CHANNELS[depth] for depth in DEPTHS)
        return features[:, :middle].flatten(1).numpy(), features[:, middle:].mean(-1).numpy()
