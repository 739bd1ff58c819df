"""A judge of small squares that learns to tell pictures from what a tokenizer makes of them, and what it says.

    judge        1/2 (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')))      hinge, arXiv:1705.02894
    tokenizer    w G,  G = -mean D(x'),  w = weight |dR/dW| / (|dG/dW| + 1e-4)

R is the error of the pictures and W the weight of the decoder's last layer: there the judge pulls as hard as the error,
times `weight`, whatever the scale of its scores (VQGAN, arXiv:2012.09841).  D looks at squares, not at whole pictures
(arXiv:1611.07004).
Axes: b batch, H = W pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgemm.model.lite0 import Lite0, lite0_weights

__all__ = ["Adversary", "SquareJudge", "adaptive_weight", "hinge", "PerceptualDistance"]

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
# f are the feature maps of EfficientNet-Lite0 (model/lite0.py) at three depths.  It sees edges and textures where the
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
