"""Teaching the autoencoder whose latents a model draws (`image_tokens = ae`): before drawing, and never after it.

The error of the pictures (tokenizer_task.py), with a little noise on the latents, so that near is near for the decoder
too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgemm.errors import InputError
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe
from edgemm.train.tokenizer_task import TokenizerTask

__all__ = ["AutoencodeTask"]

LATENT_NOISE = 0.05  # of the latents, which are pulled to a spread of 1
SPREAD_WEIGHT = 1e-3
STANDARDISED = 2048  # pictures that mean and spread are taken from


class AutoencodeTask(TokenizerTask):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: Recipe, share: Share | None = None) -> None:
        if model.autoencoder is None:
            raise InputError(f"{recipe.start} draws pixels, it has no autoencoder; give image_tokens = 'ae'")
        super().__init__(model, model.autoencoder, model.autoencoder.up[-1], recipe, share)
        self.autoencoder = model.autoencoder

    def loss(self, step: int) -> Tensor:
        pixels = self.batch_of(step)
        latents = self.autoencoder.raw(pixels)
        random = np.random.default_rng([self.recipe.seed, step, 3])
        noise = random.standard_normal((self.recipe.batch, *latents.shape[1:]), dtype=np.float32)
        mine = torch.from_numpy(noise[self.share.of(self.recipe.batch)]).to(latents.device)
        drawn = self.autoencoder.render(latents + LATENT_NOISE * mine).float()
        return self.error(drawn, pixels, step) + SPREAD_WEIGHT * latents.float().square().mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How like the pictures are, in decibels."""
        pixels = self.batch_of(step)
        return self.likenesses(self.autoencoder.render(self.autoencoder.raw(pixels)), pixels)

    def samples(self, model: Unified) -> Tensor:
        """Eight pictures above, what is left of them below (16, 3, H, W)."""
        self._standardise()
        pixels = self.spread(8)
        with torch.no_grad():
            return torch.cat([pixels, model.to_pixels(model.to_tokens(pixels))])

    def save(self, path: Path) -> None:
        self._standardise()
        super().save(path)

    def _standardise(self) -> None:
        self.autoencoder.standardise(self.spread(min(STANDARDISED, len(self.pixels))))
