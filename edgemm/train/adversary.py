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

__all__ = ["Adversary", "SquareJudge", "adaptive_weight", "hinge"]

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
