"""SmoothQuant (arXiv:2211.10438): half of what makes activations hard to round moves into the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["smoothquant_factors"]

STRENGTH = 0.5  # 0: all is left in the activations, 1: all is moved


def smoothquant_factors(weights: Sequence[Tensor], largest: Tensor, strength: float = STRENGTH) -> Tensor:
    """Readers' weights (n, k), the largest input of each channel (k) -> factors (k)."""
    inputs = largest.clamp(min=1e-5)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    return (inputs**strength / columns ** (1 - strength)).clamp(min=1e-5)
