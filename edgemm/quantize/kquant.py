"""Asymmetric groups whose scale and offset are searched: the least weighted error over slightly narrower ranges.

As llama.cpp's k-quants and ONNX Runtime's copy of them choose theirs: large weights count more, and for each candidate
range the best scale and minimum follow in closed form (weighted least squares on the codes).  The zero-point is a whole
number, so each candidate is judged after it was rounded, as it will be used.  Symmetric numbers have a search over the
scale alone.  Needs no data; `importance`, a number an input channel, may come from some.
Axes: n, k, g as in integers.py; m groups of any rows, last, so that sums over a group are sums of long vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemm.quantize.integers import Integers, encode, in_groups
from edgemm.quantize.rtn import ranges

__all__ = ["kquant"]

NARROWER = tuple(0.92 + 0.02 * step for step in range(5))  # of the range, what the codes are stretched over
GROUPS = 2048  # at a time: they stay in the cache


def kquant(weight: Tensor, bits: int, group: int, symmetric: bool, importance: Tensor | None = None) -> Integers:
    """weight (n, k) float32 -> its numbers; importance (k) is each input channel's mean square, if known."""
    groups = in_groups(weight, group)  # (n, g, group)
    n, g, _ = groups.shape
    columns = groups.flatten(0, 1).T.contiguous()  # (group, m)
    known = None if importance is None else in_groups(importance[None], group).expand_as(groups).flatten(0, 1).T
    scales, zeros = torch.empty(n * g), torch.empty(n * g)
    search = _search_scale if symmetric else _search
    for start in range(0, n * g, GROUPS):
        part = slice(start, start + GROUPS)
        x = columns[:, part]
        mass = x.square().mean(0).sqrt() + x.abs()
        if known is not None:
            mass = mass * known[:, part]
        scales[part], zeros[part] = search(x, mass, bits)
    return encode(weight, scales.view(n, g), zeros.view(n, g), bits, group, symmetric)


def _search(x: Tensor, mass: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    levels = 2**bits - 1
    best_scale, best_zero = ranges(x.T, bits, symmetric=False)
    best = _error(x, mass, best_scale, best_zero, 0, levels)
    low = x.amin(0)
    width = (x.amax(0) - low).clamp(min=1e-12)
    sum_w, sum_x = mass.sum(0), (mass * x).sum(0)
    for share in NARROWER:
        codes = (x - low).mul_(levels / (share * width)).round_().clamp_(0, levels)
        weighted = mass * codes
        sum_l, sum_l2, sum_xl = weighted.sum(0), (weighted * codes).sum(0), weighted.mul_(x).sum(0)
        spread = (sum_w * sum_l2 - sum_l.square()).clamp(min=1e-20)
        scale = (sum_w * sum_xl - sum_x * sum_l) / spread
        minimum = (sum_l2 * sum_x - sum_l * sum_xl) / spread
        scale = torch.where(scale > 1e-12, scale, best_scale)
        zero = torch.round(-minimum / scale).clamp(0, levels)
        error = _error(x, mass, scale, zero, 0, levels)
        better = error < best
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _search_scale(x: Tensor, mass: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    levels = 2**bits - 1
    first, zero = ranges(x.T, bits, symmetric=True)
    best_scale, best = first, _error(x, mass, first, zero, 1, levels)
    for step in range(1, 12):
        scale = first * (1 - 0.03 * step)
        error = _error(x, mass, scale, zero, 1, levels)
        best_scale, best = torch.where(error < best, scale, best_scale), torch.minimum(error, best)
    return best_scale, zero


def _error(x: Tensor, mass: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """Weighted square error of each group (m), coded with this scale and zero-point."""
    said = (x / scale).round_().add_(zero).clamp_(lowest, highest).sub_(zero).mul_(scale)
    return said.sub_(x).square_().mul_(mass).sum(0)
