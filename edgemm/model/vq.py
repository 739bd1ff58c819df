"""A small VQ tokenizer: a picture as entries of a codebook, and back (`image_tokens = vq`; VQ-VAE, arXiv:1711.00937).

Each code covers a square of `patch` pixels.  Latents and entries are compared by their angle alone, in few dimensions:
then most of a codebook is used (arXiv:2110.04627).  It is trained by itself first (train/vq.py) and frozen afterwards.
It knows codes, never token ids: see config.ModelConfig.first_code.
Axes: b batch, n codes in row-major order, k entries, c numbers of an entry, H = W pixels a side, s = H / patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.config import ImageTokensConfig
from edgemm.model.autoencoder import halving_convolutions

__all__ = ["VqTokenizer"]


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
