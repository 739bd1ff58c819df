"""What teaching an image tokenizer has in common, whichever it is (autoencode.py, vq.py): pictures in, pictures out.

It is taught before anything reads or draws its tokens, and never after.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from edgemm.evaluate.metrics import psnr_db
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.pictures import batch_rows, pick_samples, pictures_of
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe

__all__ = ["TokenizerTask"]


class TokenizerTask:
    """All of what the loop trains but losses, measures and samples; see train/loop.py for the interface."""

    def __init__(self, model: Unified, tokenizer: nn.Module, recipe: Recipe, share: Share | None = None) -> None:
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self._tokenizer = tokenizer.requires_grad_(True)
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        self.pixels = pictures_of(Path(recipe.data), samples, model.config.image_tokens.image_size)
        self.description = f"{len(samples)} pictures"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._tokenizer.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._tokenizer.named_buffers()

    def prepare(self) -> None:
        """Nothing comes before the first step."""

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path)  # float32: later stages learn from these very tokens

    def batch_of(self, step: int) -> Tensor:
        """This process's pictures of a step, (b, 3, H, W) in [0, 1]."""
        mine = self.share.of(self.recipe.batch)
        return self.pictures(batch_rows(len(self.pixels), self.recipe.batch, self.recipe.seed, step)[mine])

    def spread(self, count: int) -> Tensor:
        """So many pictures, evenly over the data."""
        return self.pictures(np.linspace(0, len(self.pixels) - 1, count).astype(int))

    @staticmethod
    def likeness_db(drawn: Tensor, pixels: Tensor) -> float:
        """PSNR of what the tokenizer makes of the pictures."""
        return psnr_db(drawn.clamp(0, 1).float().cpu().numpy(), pixels.cpu().numpy())

    def pictures(self, rows: np.ndarray) -> Tensor:
        return self.pixels[rows].to(self.model.device).float() / 255
