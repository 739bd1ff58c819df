"""Teaching the autoencoder whose latents a model draws (`image_tokens = ae`): before drawing, and never after it.

Mean absolute and squared error of the pixels, with a little noise on the latents, so that near is near for the decoder
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.pictures import batch_rows, pick_samples, pictures_of
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe

__all__ = ["AutoencodeTask"]

LATENT_NOISE = 0.05  # of the latents, which are pulled to a spread of 1
SPREAD_WEIGHT = 1e-3
STANDARDISED = 2048  # pictures that mean and spread are taken from


class AutoencodeTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: Recipe, share: Share | None = None) -> None:
        if model.autoencoder is None:
            raise InputError(f"{recipe.start} draws pixels, it has no autoencoder; give image_tokens = 'ae'")
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self.autoencoder = model.autoencoder.requires_grad_(True)
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        self.pixels = pictures_of(Path(recipe.data), samples, model.config.image_tokens.image_size)
        self.description = f"{len(samples)} pictures"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.autoencoder.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.autoencoder.named_buffers()

    def prepare(self) -> None:
        """Nothing comes before the first step."""

    def loss(self, step: int) -> Tensor:
        pixels = self._pixels(step)
        latents = self.autoencoder.raw(pixels)
        random = np.random.default_rng([self.recipe.seed, step, 3])
        noise = random.standard_normal((self.recipe.batch, *latents.shape[1:]), dtype=np.float32)
        mine = torch.from_numpy(noise[self.share.of(self.recipe.batch)]).to(latents.device)
        error = self.autoencoder.render(latents + LATENT_NOISE * mine).float() - pixels
        return error.abs().mean() + error.square().mean() + SPREAD_WEIGHT * latents.float().square().mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How like the pictures are, in decibels."""
        pixels = self._pixels(step)
        error = self.autoencoder.render(self.autoencoder.raw(pixels)).clamp(0, 1).float() - pixels
        return {"psnr_db": -10 * error.square().mean().clamp(min=1e-10).log10().item()}

    def samples(self, model: Unified) -> Tensor:
        """Eight pictures above, what is left of them below (16, 3, H, W)."""
        self._standardise()
        rows = np.linspace(0, len(self.pixels) - 1, 8).astype(int)
        pixels = self.pixels[rows].to(self.autoencoder.mean.device).float() / 255
        with torch.no_grad():
            return torch.cat([pixels, model.to_pixels(model.to_tokens(pixels))])

    def save(self, path: Path) -> None:
        self._standardise()
        checkpoint.save(self.model, path)  # float32: later stages learn from these very latents

    def _standardise(self) -> None:
        rows = np.linspace(0, len(self.pixels) - 1, min(STANDARDISED, len(self.pixels))).astype(int)
        self.autoencoder.standardise(self.pixels[rows].to(self.autoencoder.mean.device).float() / 255)

    def _pixels(self, step: int) -> Tensor:
        mine = self.share.of(self.recipe.batch)
        rows = batch_rows(len(self.pixels), self.recipe.batch, self.recipe.seed, step)[mine]
        return self.pixels[rows].to(self.autoencoder.mean.device).float() / 255
