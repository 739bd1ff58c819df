"""Teaching an image tokenizer, an autoencoder or a VQ-VAE: pictures in, pictures out.

    R = |x' - x| + (x' - x)^2 + perceptual_weight P(x', x)

and what a judge of squares says, who learns all along and is heard from step `adversarial_start` on (VQGAN,
arXiv:2012.09841; latent diffusion has it for its autoencoder, too).  Without both it is a plain VQ-VAE or autoencoder.
A tokenizer is taught before anything reads or draws its tokens, and never after.
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
from edgemm.model.vision import Lite0, lite0_weights
from edgemm.train.ranks import Share
from edgemm.train.recipe import AutoencodeRecipe
from edgemm.train.samples import batch_rows, pick_samples, pictures_of

__all__ = [
    "Adversary",
    "AutoencodeTask",
    "PerceptualDistance",
    "SquareJudge",
    "TokenizerTask",
    "VqTask",
    "adaptive_weight",
    "hinge",
]


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


# A judge of small squares that learns to tell pictures from what a tokenizer makes of them, and what it says.
#
#     judge        1/2 (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')))      hinge, arXiv:1705.02894
#     tokenizer    w G,  G = -mean D(x'),  w = weight |dR/dW| / (|dG/dW| + 1e-4)
#
# R is the error of the pictures and W the weight of the decoder's last layer: there the judge pulls as hard as the
# error, times `weight`, whatever the scale of its scores (VQGAN, arXiv:2012.09841).  D looks at squares, not at whole
# pictures (arXiv:1611.07004). Axes: b batch, H = W pixels a side.

WIDTH = 32
SMALLEST = 1e-4  # gradient, and with it the largest weight
LARGEST_WEIGHT = 1e4


class SquareJudge(nn.Module):
    """A score for every square of 22 pixels, four apart: above 0 where it looks real."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, 1, H / 4 - 1, W / 4 - 1)."""
        return self.layers(pixels * 2 - 1)


def hinge(real: Tensor, drawn: Tensor) -> Tensor:
    """Nothing more is to be won where a score is past 1 on its side."""
    return 0.5 * ((1 - real).relu().mean() + (1 + drawn).relu().mean())


def adaptive_weight(error: Tensor, opposed: Tensor, weight: Tensor) -> Tensor:
    """How much `opposed` has to count to pull at `weight` as hard as `error` does."""
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].float().norm() for loss in (error, opposed)]
    return (norms[0] / (norms[1] + SMALLEST)).clamp(max=LARGEST_WEIGHT).detach()


class Adversary:
    """The judge in training, and its two losses: neither side's gradient reaches the other, so they may be summed."""

    def __init__(self, weight: float) -> None:
        self.weight, self.judge = weight, SquareJudge()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.judge.named_parameters(prefix="judge")

    def learning(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """The judge's own loss; it does not reach what made `drawn`."""
        return hinge(self.judge(pixels).float(), self.judge(drawn.detach()).float())

    def opposed(self, drawn: Tensor, error: Tensor, last: Tensor) -> Tensor:
        """What is added to `error`, that of `drawn`, whose last layer has the weight `last`; the judge is as it is."""
        frozen = {name: parameter.detach() for name, parameter in self.judge.named_parameters()}
        opposed = -torch.func.functional_call(self.judge, frozen, (drawn,)).float().mean()
        return self.weight * adaptive_weight(error, opposed, last) * opposed

    @torch.no_grad()
    def told_apart(self, pixels: Tensor, drawn: Tensor) -> float:
        """The share of squares that the judge is right about: a half, where it cannot tell."""
        right = torch.stack([(self.judge(pixels) > 0).float().mean(), (self.judge(drawn) <= 0).float().mean()])
        return right.mean().item()


# How unlike two pictures are to an eye that was trained on photographs: LPIPS without its learned weights.
#
#     P(x', x) = mean over depths, places |f(x') / |f(x')| - f(x) / |f(x)||^2        arXiv:1801.03924
#
# f are the feature maps of EfficientNet-Lite0 (model/vision.py) at three depths.  It sees edges and textures where the
# pixels' error sees their mean.
# Axes: b batch, H = W pixels a side.

DEPTHS = (0, 2, 4)  # blocks whose maps are compared, at 1/2, 1/4 and 1/8 of the side
SMALLEST_SIDE = 64  # pixels; smaller pictures are looked at through a lens


class PerceptualDistance(nn.Module):
    """Frozen; MissingError where Lite0's weights are not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = Lite0()
        self.eye.load_state_dict(lite0_weights())

    def forward(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] twice -> a number, 0 for equal pictures."""
        distances = [(one - other).square().sum(1).mean() for one, other in zip(self._maps(drawn), self._maps(pixels))]
        return torch.stack(distances).mean()

    def _maps(self, pixels: Tensor) -> Iterator[Tensor]:
        """Each place's features of length 1, (b, c, h, w)."""
        if pixels.shape[-1] < SMALLEST_SIDE:
            pixels = nn.functional.interpolate(pixels, size=SMALLEST_SIDE, mode="bilinear")
        x = self.eye.first_map(pixels)
        for depth, block in enumerate(self.eye.blocks[: max(DEPTHS) + 1]):
            x = block(x)
            if depth in DEPTHS:
                yield nn.functional.normalize(x.float(), dim=1, eps=1e-6)
