"""What teaching an image tokenizer has in common, whichever it is (tokenizer.py, vq.py): pictures in, pictures out.

    R = |x' - x| + (x' - x)^2 + perceptual_weight P(x', x)

and what a judge of squares says, who learns all along and is heard from step `adversarial_start` on (VQGAN,
arXiv:2012.09841; latent diffusion has it for its autoencoder, too): adversary.py, adversary.py.  Without both it is a
plain VQ-VAE or autoencoder.  A tokenizer is taught before anything reads or draws its tokens, and never after.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import InputError, UsageError
from edgemm.evaluate.metrics import psnr_db
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import AutoencodeRecipe
from edgemm.train.samples import batch_rows, pick_samples, pictures_of
from edgemm.train.tasks.adversary import Adversary, PerceptualDistance

__all__ = ["TokenizerTask", "AutoencodeTask", "VqTask"]


class TokenizerTask:
    """All of what the loop trains but losses, measures and samples; see train/loop.py for the interface."""

    def __init__(
        self, model: Unified, tokenizer: nn.Module, last_layer: nn.Module, recipe: AutoencodeRecipe,
        share: Share | None = None,
    ) -> None:  # fmt: skip
        """`last_layer` of the tokenizer's decoder."""
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self._tokenizer = tokenizer.requires_grad_(True)
        self._last = last_layer
        self.perceptual = PerceptualDistance().to(model.device) if recipe.perceptual_weight else None
        self.adversary: Adversary | None = None
        if recipe.adversarial_weight:
            if self.share.count > 1:
                raise UsageError("recipe: adversarial_weight is for one process: its weight is that of a whole batch")
            self.adversary = Adversary(recipe.adversarial_weight)
            self.adversary.judge.to(model.device)
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        self.pixels = pictures_of(Path(recipe.data), samples, model.config.image_tokens.image_size)
        self.description = f"{len(samples)} pictures"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._tokenizer.named_parameters()
        if self.adversary:
            yield from self.adversary.named_parameters()

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

    def error(self, drawn: Tensor, pixels: Tensor, step: int) -> Tensor:
        """What is wrong with the pictures that the tokenizer makes."""
        difference = drawn - pixels
        error = difference.abs().mean() + difference.square().mean()
        if self.perceptual:
            error = error + self.recipe.perceptual_weight * self.perceptual(drawn, pixels)
        if not self.adversary:
            return error
        learning = self.adversary.learning(pixels, drawn)
        if step < self.recipe.adversarial_start:
            return error + learning
        return error + learning + self.adversary.opposed(drawn, error, self._last.get_parameter("weight"))

    def likenesses(self, drawn: Tensor, pixels: Tensor) -> dict[str, float]:
        """PSNR in decibels, and, where there is a judge, how often it is right."""
        found = {"psnr_db": psnr_db(drawn.clamp(0, 1).float().cpu().numpy(), pixels.cpu().numpy())}
        return found | ({"told_apart": self.adversary.told_apart(pixels, drawn)} if self.adversary else {})

    def spread(self, count: int) -> Tensor:
        """So many pictures, evenly over the data."""
        return self.pictures(np.linspace(0, len(self.pixels) - 1, count).astype(int))

    def pictures(self, rows: np.ndarray) -> Tensor:
        return self.pixels[rows].to(self.model.device).float() / 255


# Teaching the autoencoder whose latents a model draws (`image_tokens = ae`): before drawing, and never after it.
#
# The error of the pictures (tokenizer.py), with a little noise on the latents, so that near is near for the decoder
# too.

LATENT_NOISE = 0.05  # of the latents, which are pulled to a spread of 1
SPREAD_WEIGHT = 1e-3
STANDARDISED = 2048  # pictures that mean and spread are taken from


class AutoencodeTask(TokenizerTask):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: AutoencodeRecipe, share: Share | None = None) -> None:
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


# Teaching the VQ tokenizer whose codes a model reads and draws: before both, and never after.
#
#     L = R + |sg(z) - e|^2 + commitment |z - sg(e)|^2        sg: no gradient through it
#
# R is the error of the pictures (tokenizer.py), with VQGAN's terms where the recipe asks for them.  They are decoded
# from the entries e nearest to the latents z, and the gradient goes straight through to z (VQ-VAE, arXiv:1711.00937).
# Entries that no latent of some pictures is nearest to are set down on such latents now and then (random restarts,
# arXiv:2005.00341), or most of the codebook is never used.

COMMITMENT = 0.25
RESTART_EVERY = 20  # steps
RESTARTS_UNTIL = 0.6  # of the steps: later the entries have to settle
PROBED = 128  # pictures that have to use an entry, or it starts anew


class VqTask(TokenizerTask):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: AutoencodeRecipe, share: Share | None = None) -> None:
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
