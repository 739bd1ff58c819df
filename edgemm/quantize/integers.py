"""A weight as whole numbers: codes in groups of input channels, a scale and a zero-point a group.

    w = (code - zero) * scale

What the numbers should be is for the methods (rtn.py, kquant.py, awq.py, gptq.py, ...); here is only what they mean.
Axes: n output channels, k input channels, g groups along k (the last one may be shorter).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Integers", "encode", "group_size", "half_scales", "in_groups", "spread"]


SMALLEST = 2.0**-24  # float16's smallest positive number


@dataclass(frozen=True)
class Integers:
    codes: Tensor  # (n, k) uint8, 0 to 2**bits - 1
    scales: Tensor  # (n, g) float32, positive; of groups they are float16's numbers, and stored as such
    zeros: Tensor  # (n, g) uint8; 2**(bits - 1) everywhere where the numbers are symmetric
    bits: int
    group: int  # input channels that share a scale; 0: all of a row

    def dequantized(self) -> Tensor:
        """(n, k) float32."""
        k = self.codes.shape[1]
        scales, zeros = (spread(numbers, k, self.group) for numbers in (self.scales, self.zeros))
        return (self.codes.float() - zeros.float()) * scales


def group_size(k: int, group: int) -> int:
    return group or k


def in_groups(weight: Tensor, group: int) -> Tensor:
    """(n, k) -> (n, g, group), the last group filled up with zeros."""
    n, k = weight.shape
    size = group_size(k, group)
    return pad(weight, (0, -k % size)).view(n, -1, size)


def spread(numbers: Tensor, k: int, group: int) -> Tensor:
    """One number a group (n, g) -> one an input channel (n, k)."""
    return numbers.repeat_interleave(group_size(k, group), dim=1)[:, :k]


def half_scales(scales: Tensor) -> Tensor:
    """The nearest that float16 can say: codes are chosen after it, so they make up for it."""
    return scales.clamp(SMALLEST, torch.finfo(torch.float16).max).half().float()


def encode(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, group: int, symmetric: bool) -> Integers:
    """Every weight (n, k) to its nearest code; symmetric codes leave out the lowest, which has no opposite."""
    k = weight.shape[1]
    if group:
        scales = half_scales(scales)
    raw = torch.round(weight / spread(scales, k, group)) + spread(zeros, k, group).float()
    codes = raw.clamp(1 if symmetric else 0, 2**bits - 1).to(torch.uint8)
    return Integers(codes, scales.float(), zeros.to(torch.uint8), bits, group)
