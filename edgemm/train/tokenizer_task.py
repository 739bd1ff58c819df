"""What teaching an image tokenizer has in common, whichever it is (autoencode.py, vq.py): pictures in, pictures out.

    R = |x' - x| + (x' - x)^2 + perceptual_weight P(x', x)

and what a judge of squares says, who learns all along and is heard from step `adversarial_start` on (VQGAN,
arXiv:2012.09841; latent diffusion has it for its autoencoder, too): perceptual.py, adversary.py.  Without both it is a
plain VQ-VAE or autoencoder.  A tokenizer is taught before anything reads or draws its tokens, and never after.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from edgemm.errors import UsageError
from edgemm.evaluate.metrics import psnr_db
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.adversary import Adversary
from edgemm.train.perceptual import PerceptualDistance
from edgemm.train.pictures import batch_rows, pick_samples, pictures_of
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe

__all__ = ["TokenizerTask"]


class TokenizerTask:
    """All of what the loop trains but losses, measures and samples; see train/loop.py for the interface."""

    def __init__(
        self, model: Unified, tokenizer: nn.Module, last_layer: nn.Module, recipe: Recipe, share: Share | None = None
    ) -> None:
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
