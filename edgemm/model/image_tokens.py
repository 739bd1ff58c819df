"""Pixels to drawing tokens and back: square patches, no autoencoder.

Axes: b batch, n tokens in row-major order, p = 3 * patch * patch numbers a token (channel, row, column).
A clip is a tall picture: frame below frame, H = frames * W, and so its tokens come frame after frame.
Drawing tokens hold pixels in [-1, 1]; everything outside the model holds pixels in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.model.config import ImageTokensConfig

__all__ = ["pixels_to_tokens", "tokens_to_pixels", "Autoencoder", "halving_convolutions", "VqTokenizer"]


def pixels_to_tokens(pixels: Tensor, config: ImageTokensConfig) -> Tensor:
    """(b, 3, H, W) in [0, 1] -> (b, n, p) in [-1, 1]."""
    b, side, patch = pixels.shape[0], config.image_size // config.patch, config.patch
    rows = pixels.shape[2] // patch
    grid = pixels.reshape(b, 3, rows, patch, side, patch).permute(0, 2, 4, 1, 3, 5)  # (b, row, column, 3, patch, patch)
    return grid.reshape(b, rows * side, 3 * patch * patch) * 2 - 1


def tokens_to_pixels(tokens: Tensor, config: ImageTokensConfig) -> Tensor:
    """(b, n, p) -> (b, 3, H, W), clipped to [0, 1]."""
    side, patch = config.image_size // config.patch, config.patch
    rows = tokens.shape[1] // side
    grid = tokens.reshape(-1, rows, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return (grid.reshape(-1, 3, rows * patch, config.image_size) * 0.5 + 0.5).clamp(0, 1)


# A small convolutional autoencoder: drawing tokens that are latents instead of pixels (`image_tokens = ae`).
#
# Each token covers a square of `patch` pixels and holds `channels` numbers, standardised over the training pictures, so
# that noise and picture have the same spread (arXiv:2112.10752).  It is trained by itself first (tasks/tokenizer.py)
# and frozen afterwards.
# Axes: b batch, n tokens in row-major order, c channels, H = W pixels a side, s = H / patch.


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


# A small VQ tokenizer: a picture as entries of a codebook, and back (`image_tokens = vq`; VQ-VAE, arXiv:1711.00937).
#
# Each code covers a square of `patch` pixels.  Latents and entries are compared by their angle alone, in few
# dimensions: then most of a codebook is used (arXiv:2110.04627).  It is trained by itself first (tasks/tokenizer.py)
# and frozen afterwards.  It knows codes, never token ids: see config.ModelConfig.first_code.
# Axes: b batch, n codes in row-major order, k entries, c numbers of an entry, H = W pixels a side, s = H / patch.


class VqTokenizer(nn.Module):
    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch
        self.down, self.up = halving_convolutions(config)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.channels))

    def latents(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, n, c) of length 1."""
        return nn.functional.normalize(self.down(pixels * 2 - 1).flatten(2).transpose(1, 2), dim=-1)

    def entries(self) -> Tensor:
        """The codebook (k, c), each of length 1."""
        return nn.functional.normalize(self.codebook, dim=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """(b, n, c) -> codes (b, n)."""
        return (latents @ self.entries().T).argmax(-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> codes (b, n)."""
        return self.nearest(self.latents(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (b, n) -> pixels (b, 3, H, W), not clipped."""
        return self.render(nn.functional.embedding(codes, self.entries()))

    def render(self, latents: Tensor) -> Tensor:
        """The same from latents (b, n, c)."""
        return self.up(latents.transpose(1, 2).unflatten(2, (self.side, self.side))) * 0.5 + 0.5
