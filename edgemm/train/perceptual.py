"""How unlike two pictures are to an eye that was trained on photographs: LPIPS without its learned weights.

    P(x', x) = mean over depths, places |f(x') / |f(x')| - f(x) / |f(x)||^2        arXiv:1801.03924

f are the feature maps of EfficientNet-Lite0 (model/lite0.py) at three depths.  It sees edges and textures where the
pixels' error sees their mean.
Axes: b batch, H = W pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgemm.model.lite0 import Lite0, lite0_weights

__all__ = ["PerceptualDistance"]

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
