"""Teaching the VQ tokenizer whose codes a model reads and draws: before both, and never after.

    L = |x' - x| + (x' - x)^2 + |sg(z) - e|^2 + commitment |z - sg(e)|^2        sg: no gradient through it

x' is decoded from the entries e nearest to the latents z, and its gradient goes straight through to z (VQ-VAE,
arXiv:1711.00937).  Entries that no latent of some pictures is nearest to are set down on such latents now and then
(random restarts, arXiv:2005.00341), or most of the codebook is never used.  A perceptual and an adversarial term
(VQGAN, arXiv:2012.09841) are not here.
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

__all__ = ["VqTask"]

COMMITMENT = 0.25
RESTART_EVERY = 20  # steps
RESTARTS_UNTIL = 0.6  # of the steps: later the entries have to settle
PROBED = 128  # pictures that have to use an entry, or it starts anew


class VqTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: Recipe, share: Share | None = None) -> None:
        if model.vq is None:
            raise InputError(f"{recipe.start} has no codes; give image_tokens = 'vq'")
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self.vq = model.vq.requires_grad_(True)
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        self.pixels = pictures_of(Path(recipe.data), samples, model.config.image_tokens.image_size)
        self.description = f"{len(samples)} pictures"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.vq.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.vq.named_buffers()

    def prepare(self) -> None:
        """The first restart comes with the first step."""

    def loss(self, step: int) -> Tensor:
        if step % RESTART_EVERY == 0 and step < RESTARTS_UNTIL * self.recipe.steps:
            self._restart(step)
        pixels = self._pixels(step)
        latents = self.vq.latents(pixels)  # (b, n, c)
        entries = nn.functional.embedding(self.vq.nearest(latents), self.vq.entries())
        drawn = self.vq.render(latents + (entries - latents).detach()).float()
        error = drawn - pixels
        pull = (entries - latents.detach()).float().square().sum(-1).mean()
        stay = (latents - entries.detach()).float().square().sum(-1).mean()
        return error.abs().mean() + error.square().mean() + pull + COMMITMENT * stay

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How like the pictures are, in decibels, and how much of the codebook the batch uses."""
        pixels = self._pixels(step)
        codes = self.vq.encode(pixels)
        error = self.vq.decode(codes).clamp(0, 1).float() - pixels
        used = len(codes.unique()) / len(self.vq.codebook)
        return {"psnr_db": -10 * error.square().mean().clamp(min=1e-10).log10().item(), "codes_used": used}

    def samples(self, model: Unified) -> Tensor:
        """Eight pictures above, what is left of them below (16, 3, H, W)."""
        rows = np.linspace(0, len(self.pixels) - 1, 8).astype(int)
        pixels = self._shown(rows)
        with torch.no_grad():
            return torch.cat([pixels, self.vq.decode(self.vq.encode(pixels)).clamp(0, 1)])

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path)  # float32: later stages learn these very codes

    @torch.no_grad()
    def _restart(self, step: int) -> None:
        """Every process sets down the same entries on the same latents."""
        random = np.random.default_rng([self.recipe.seed, step, 4])
        rows = random.integers(len(self.pixels), size=min(PROBED, len(self.pixels)))
        latents = self.vq.latents(self._shown(rows)).float()
        used = torch.zeros(len(self.vq.codebook), dtype=torch.bool, device=latents.device)
        used[self.vq.nearest(latents).flatten()] = True
        idle = (~used).nonzero()[:, 0]
        places = torch.from_numpy(random.integers(latents.shape[0] * latents.shape[1], size=len(idle)))
        self.vq.codebook[idle] = latents.flatten(0, 1)[places.to(latents.device)]

    def _pixels(self, step: int) -> Tensor:
        mine = self.share.of(self.recipe.batch)
        return self._shown(batch_rows(len(self.pixels), self.recipe.batch, self.recipe.seed, step)[mine])

    def _shown(self, rows: np.ndarray) -> Tensor:
        return self.pixels[rows].to(self.model.device).float() / 255
