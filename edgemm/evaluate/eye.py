"""What the judges look with: EfficientNet-Lite0, frozen, as it was trained on photographs.

Three depths are kept, because they see different things: the outline of a drawing, its parts, and what it is.  Each
feature map is averaged onto a 4 x 4 grid.  The last layer's mean is what KID-Lite0 compares.
torch is needed here; label_scorer.py, which judges, is numpy alone.
Axes: b pictures, S side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, relu6

from edgemm.data.progress import progress
from edgemm.evaluate.pictures import resized
from edgemm.model.lite0 import Lite0, lite0_weights

__all__ = ["GRID_WIDTHS", "Eye", "Looks"]

SIDE = 128  # pixels; smaller pictures are enlarged: Lite0 was made for 224 and sees little in 64
GRID = 4
CHANNELS = {7: 80, 10: 112, 14: 192}  # the last block of three stages -> its channels
GRID_WIDTHS = tuple(channels * GRID**2 for channels in CHANNELS.values())  # columns of `grids`, a depth after the other
BATCH = 32


@dataclass(frozen=True, eq=False)
class Looks:
    """What the eye sees of b pictures."""

    grids: np.ndarray  # (b, sum(GRID_WIDTHS)) float32: three depths on a grid
    pooled: np.ndarray  # (b, 1280) float32: the last layer's mean


class Eye:
    def __init__(self) -> None:
        self.net = Lite0().eval()
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
        x, grids = relu6(self.net.stem((pixels * 255 - 127) / 128)), []
        for index, block in enumerate(self.net.blocks):
            x = block(x)
            if index in CHANNELS:
                grids.append(adaptive_avg_pool2d(x, GRID).flatten(1))
        pooled = relu6(self.net.head(x)).mean(dim=(2, 3))
        return torch.cat(grids, dim=1).numpy(), pooled.numpy()
