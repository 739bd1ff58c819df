"""Teaching the VQ tokenizer whose codes a model reads and draws: before both, and never after.

    L = R + |sg(z) - e|^2 + commitment |z - sg(e)|^2        sg: no gradient through it

R is the error of the pictures (tokenizer_task.py), with VQGAN's terms where the recipe asks for them.  They are decoded
from the entries e nearest to the latents z, and the gradient goes straight through to z (VQ-VAE, arXiv:1711.00937).
Entries that no latent of some pictures is nearest to are set down on such latents now and then (random restarts,
arXiv:2005.00341), or most of the codebook is never used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe
from edgemm.train.tokenizer_task import TokenizerTask

__all__ = ["VqTask"]

COMMITMENT = 0.25
RESTART_EVERY = 20  # steps
RESTARTS_UNTIL = 0.6  # of the steps: later the entries have to settle
PROBED = 128  # pictures that have to use an entry, or it starts anew


class VqTask(TokenizerTask):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: Recipe, share: Share | None = None) -> None:
        if model.vq is None:
            raise InputError(f"{recipe.start} has no codes; give image_tokens = 'vq'")
        super().__init__(model, model.vq, model.vq.up[-1], recipe, share)
        self.vq = model.vq

    def loss(self, step: int) -> Tensor:
        if step % RESTART_EVERY == 0 and step < RESTARTS_UNTIL * self.recipe.steps:
            self._restart(step)
        pixels = self.batch_of(step)
        latents = self.vq.latents(pixels)  # (b, n, c)
        entries = nn.functional.embedding(self.vq.nearest(latents), self.vq.entries())
        drawn = self.vq.render(latents + (entries - latents).detach()).float()
        pull = (entries - latents.detach()).float().square().sum(-1).mean()
        stay = (latents - entries.detach()).float().square().sum(-1).mean()
        return self.error(drawn, pixels, step) + pull + COMMITMENT * stay

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How like the pictures are, in decibels, and how much of the codebook the batch uses."""
        pixels = self.batch_of(step)
        codes = self.vq.encode(pixels)
        used = len(codes.unique()) / len(self.vq.codebook)
        return {**self.likenesses(self.vq.decode(codes), pixels), "codes_used": used}

    def samples(self, model: Unified) -> Tensor:
        """Eight pictures above, what is left of them below (16, 3, H, W)."""
        pixels = self.spread(8)
        with torch.no_grad():
            return torch.cat([pixels, self.vq.decode(self.vq.encode(pixels)).clamp(0, 1)])

    @torch.no_grad()
    def _restart(self, step: int) -> None:
        """Every process sets down the same entries on the same latents."""
        random = np.random.default_rng([self.recipe.seed, step, 4])
        rows = random.integers(len(self.pixels), size=min(PROBED, len(self.pixels)))
        latents = self.vq.latents(self.pictures(rows)).float()
        used = torch.zeros(len(self.vq.codebook), dtype=torch.bool, device=latents.device)
        used[self.vq.nearest(latents).flatten()] = True
        idle = (~used).nonzero()[:, 0]
        places = torch.from_numpy(random.integers(latents.shape[0] * latents.shape[1], size=len(idle)))
        self.vq.codebook[idle] = latents.flatten(0, 1)[places.to(latents.device)]
