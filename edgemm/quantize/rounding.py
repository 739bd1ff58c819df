"""Round to nearest: the range of each group, divided evenly.  Needs no data; the other methods are held against it.

Asymmetric numbers are those of ONNX Runtime's own block quantizer; symmetric ones put the largest weight at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemm.quantize.number_formats import Integers, encode, in_groups, spread

__all__ = ["ranges", "rtn", "kquant", "DAMPING", "gptq", "low_rank_branch"]


def rtn(weight: Tensor, bits: int, group: int, symmetric: bool) -> Integers:
    """weight (n, k) float32 -> its numbers."""
    scales, zeros = ranges(in_groups(weight, group), bits, symmetric)
    return encode(weight, scales, zeros, bits, group, symmetric)


def ranges(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Groups (n, g, group) -> scales (n, g) and zero-points (n, g); zero itself can always be said."""
    levels = 2**bits - 1
    if symmetric:
        scales = groups.abs().amax(-1) / (levels // 2)
        return _positive(scales), torch.full_like(scales, 2 ** (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = _positive((high - low) / levels)
    return scales, torch.round(-low / scales).clamp(0, levels)


def _positive(scales: Tensor) -> Tensor:
    """A group of zeros has no range: any scale will do."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))


# Asymmetric groups whose scale and offset are searched: the least weighted error over slightly narrower ranges.
#
# As llama.cpp's k-quants and ONNX Runtime's copy of them choose theirs: large weights count more, and for each
# candidate range the best scale and minimum follow in closed form (weighted least squares on the codes).  The
# zero-point is a whole number, so each candidate is judged after it was rounded, as it will be used.  Symmetric numbers
# have a search over the scale alone.  Needs no data; `importance`, a number an input channel, may come from some.
# Axes: n, k, g as in number_formats.py; m groups of any rows, last, so that sums over a group are sums of long vectors.

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


# GPTQ (arXiv:2210.17323): round one input channel after the other, and let the ones to come make up for each error.
#
# Channels with the largest inputs go first; scales and zero-points of all groups are chosen beforehand (rounding.py),
# so the order leaves the groups as they lie in memory.
# Axes: n output channels, k input channels.

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


# A low-rank branch in float beside a 4-bit weight (SVDQuant, arXiv:2411.05007): it carries what rounds worst.
#
#     W x = up @ (down @ x) + (W - up @ down) x      the last product in 4 bits
#
# The singular values are those of the weight times each channel's root mean square input, so that the branch spends its
# rank on what is heard in the output.   Axes: n output channels, k input channels, r rank.


def low_rank_branch(weight: Tensor, squares: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """weight (n, k), mean square of each input channel (k) -> down (r, k) and up (n, r)."""
    loudness = (squares + 1e-3 * squares.mean()).clamp(min=1e-12).sqrt()
    left, values, right = torch.linalg.svd(weight * loudness, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank] / loudness, left[:, :rank] * root
