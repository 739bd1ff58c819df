"""Attention as plain matrix products, rotary embedding and RMS normalization.

Written out rather than fused because on CPUs the fused backward with a mask is several times slower in bfloat16, and
because an exporter can see every product.  Knows tensors only: no configs, caches or files.
Axes: b batch, h query heads, g key/value heads, q queries, k keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm", "apply_rotary", "attend", "rotary_tables", "visible_up_to"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (b, q, d/2) float32, of rotary embedding (arXiv:2104.09864) at the given (b, q) positions."""
    rates = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width)
    angles = positions.float()[..., None] * rates  # (b, q, d/2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (b, h, q, d) by the tables (b, q, d/2); first half against second half, as Llama's released weights do."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def visible_up_to(limit: Tensor, slots: int) -> Tensor:
    """Mask (b, 1, q, k), true where key slot k <= limit (b, q): the one rule behind causal text and image blocks."""
    return torch.arange(slots, device=limit.device) <= limit[:, None, :, None]


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention: queries (b, h, q, d), keys and values (b, g, k, d), mask (b, 1, q | 1, k) -> (b, h, q, d).

    Query heads that share a key/value head are folded into the query axis: one product a group, nothing repeated.
    """
    b, h, q, d = queries.shape
    g = keys.shape[1]
    folded = queries.reshape(b, g, h // g * q, d) * d**-0.5
    scores = folded @ keys.transpose(-1, -2)  # (b, g, h/g*q, k)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(~mask, float("-inf"))
        scores = (scores.reshape(b, g, h // g, q, -1) + bias[:, :, None]).reshape(scores.shape)
    weights = scores.float().softmax(dim=-1).to(values.dtype)
    return (weights @ values).reshape(b, h, q, d)
