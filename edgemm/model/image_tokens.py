"""Pixels to drawing tokens and back: square patches, no autoencoder.

Axes: b batch, n tokens in row-major order, p = 3 * patch * patch numbers a token (channel, row, column).
Drawing tokens hold pixels in [-1, 1]; everything outside the model holds pixels in [0, 1].
"""

from __future__ import annotations

from torch import Tensor

from edgemm.config import ImageTokensConfig

__all__ = ["pixels_to_tokens", "tokens_to_pixels"]


def pixels_to_tokens(pixels: Tensor, config: ImageTokensConfig) -> Tensor:
    """(b, 3, H, W) in [0, 1] -> (b, n, p) in [-1, 1]."""
    b, side, patch = pixels.shape[0], config.image_size // config.patch, config.patch
    grid = pixels.reshape(b, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)  # (b, row, column, 3, patch, patch)
    return grid.reshape(b, side * side, 3 * patch * patch) * 2 - 1


def tokens_to_pixels(tokens: Tensor, config: ImageTokensConfig) -> Tensor:
    """(b, n, p) -> (b, 3, H, W), clipped to [0, 1]."""
    side, patch = config.image_size // config.patch, config.patch
    grid = tokens.reshape(-1, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return (grid.reshape(-1, 3, config.image_size, config.image_size) * 0.5 + 0.5).clamp(0, 1)
