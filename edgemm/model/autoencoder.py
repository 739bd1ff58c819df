"""A small convolutional autoencoder: drawing tokens that are latents instead of pixels (`image_tokens = ae`).

Each token covers a square of `patch` pixels and holds `channels` numbers, standardised over the training pictures, so
that noise and picture have the same spread (arXiv:2112.10752).  It is trained by itself first (train/autoencode.py) and
frozen afterwards.
Axes: b batch, n tokens in row-major order, c channels, H = W pixels a side, s = H / patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.config import ImageTokensConfig

__all__ = ["Autoencoder", "halving_convolutions"]


def halving_convolutions(config: ImageTokensConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """From pixels (b, 3, H, W) to latents (b, c, s, s), and back."""
    halvings, width = config.patch.bit_length() - 1, config.hidden
    down: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    up: list[nn.Module] = [nn.Conv2d(config.channels, width, 3, padding=1)]
    for _ in range(halvings):
        down += [nn.SiLU(), nn.Conv2d(width, width, 4, stride=2, padding=1)]
        up += [nn.SiLU(), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
    return (
        nn.Sequential(*down, nn.SiLU(), nn.Conv2d(width, config.channels, 3, padding=1)),
        nn.Sequential(*up, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)),
    )


class Autoencoder(nn.Module):
    mean: Tensor  # (c)
    spread: Tensor  # (c)

    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch
        self.down, self.up = halving_convolutions(config)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("spread", torch.ones(config.channels))

    def encode(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> tokens (b, n, c), standardised."""
        return (self.raw(pixels) - self.mean) / self.spread

    def raw(self, pixels: Tensor) -> Tensor:
        """The same before they are standardised."""
        return self.down(pixels * 2 - 1).flatten(2).transpose(1, 2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(b, n, c) -> pixels (b, 3, H, W), not clipped."""
        return self.render(tokens * self.spread + self.mean)

    def render(self, latents: Tensor) -> Tensor:
        """The same from tokens that were never standardised."""
        return self.up(latents.transpose(1, 2).unflatten(2, (self.side, self.side))) * 0.5 + 0.5

    @torch.no_grad()
    def standardise(self, pixels: Tensor) -> None:
        """Take mean and spread of each channel from training pictures (b, 3, H, W)."""
        latents = torch.cat([self.raw(chunk) for chunk in pixels.split(64)]).flatten(0, 1)  # (b * n, c)
        self.mean.copy_(latents.mean(0))
        self.spread.copy_(latents.std(0).clamp(min=1e-3))
