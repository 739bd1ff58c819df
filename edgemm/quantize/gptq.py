"""GPTQ (arXiv:2210.17323): round one input channel after the other, and let the ones to come make up for each error.

Channels with the largest inputs go first; scales and zero-points of all groups are chosen beforehand (kquant.py), so
the order leaves the groups as they lie in memory.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemm.quantize.integers import Integers, spread
from edgemm.quantize.kquant import kquant

__all__ = ["DAMPING", "gptq"]

DAMPING = 0.01
BLOCK = 128  # channels whose errors are passed on among themselves before the rest hears of them


def gptq(weight: Tensor, gram: Tensor, bits: int, group: int, symmetric: bool, damping: float = DAMPING) -> Integers:
    """weight (n, k); gram (k, k) is the mean of x x^T over calibration inputs x.

    `damping` says how much an error counts that no input sees, as a share of the mean square input.
    """
    k = weight.shape[1]
    squares = gram.diagonal().clone()
    start = kquant(weight, bits, group, symmetric, importance=squares + damping * squares.mean())
    order = squares.argsort(descending=True)
    scales, zeros = (spread(numbers, k, group)[:, order] for numbers in (start.scales, start.zeros.float()))
    w = weight[:, order].clone()
    passed_on = _inverse_root(gram[order][:, order], damping)  # (k, k) upper triangular
    codes = torch.empty_like(w)
    lowest, highest = int(symmetric), 2**bits - 1
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        errors = torch.empty(len(w), last - first)
        for column in range(first, last):
            scale, zero = scales[:, column], zeros[:, column]
            codes[:, column] = (torch.round(w[:, column] / scale) + zero).clamp(lowest, highest)
            said = (codes[:, column] - zero) * scale
            error = (w[:, column] - said) / passed_on[column, column]
            w[:, column + 1 : last] -= error[:, None] * passed_on[column, column + 1 : last]
            errors[:, column - first] = error
        w[:, last:] -= errors @ passed_on[first:last, last:]
    back = torch.empty_like(order)
    back[order] = torch.arange(k)
    return Integers(codes[:, back].to(torch.uint8), start.scales, start.zeros, bits, group)


def _inverse_root(gram: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the damped gram matrix's inverse; float64, as inputs differ by thousands."""
    damped = gram.double()
    damped.diagonal().add_(damping * gram.diagonal().mean().double().clamp(min=1e-12))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()
