"""A weight as whole numbers: codes in groups of input channels, a scale and a zero-point a group.

    w = (code - zero) * scale

What the numbers should be is for the methods (rounding.py, smoothing.py); here is only what they mean.
Axes: n output channels, k input channels, g groups along k (the last one may be shorter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgemm.errors import InputError

__all__ = [
    "Integers",
    "encode",
    "group_size",
    "half_scales",
    "in_groups",
    "joined",
    "spread",
    "BLOCK",
    "E4M3_LARGEST",
    "FLOAT_FORMS",
    "Floats",
    "as_e4m3",
    "in_blocks",
    "to_floats",
    "whole_of",
]

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


def joined(parts: Sequence[Integers]) -> Integers:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    codes, scales, zeros = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "zeros"))
    return Integers(codes, scales, zeros, parts[0].bits, parts[0].group)


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


# A weight as small floating-point numbers: FP8 with a scale an output channel, NVFP4 with scales that have a scale.
#
#     fp8     w = number * scale            numbers of E4M3, up to 448; scales are float16's
#     nvfp4   w = number * (scale * whole)  numbers of E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; a scale of E4M3 for 16 input
#                                           channels, and one float32 that is the scale of all scales
#
# Always to the nearest number, halfway to the even one; what is too large becomes the largest.  FP8: arXiv:2209.05433.
# NVFP4: arXiv:2509.25149.  Which GPUs multiply them is for edgemm/device/gpu.py.
# Axes: n output channels, k input channels, g groups along k.

FLOAT_FORMS = ("fp8", "nvfp4")
BLOCK = 16  # input channels that share a scale of NVFP4
E4M3_LARGEST, E4M3_SMALLEST = 448.0, 2.0**-9
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # by their three bits; the fourth is the sign


@dataclass(frozen=True)
class Floats:
    codes: Tensor  # (n, k) uint8, the bits of each number
    scales: Tensor  # (n, g) float32, positive
    whole: Tensor  # (1) float32; 1 for fp8
    form: str  # one of FLOAT_FORMS

    def dequantized(self) -> Tensor:
        """(n, k) float32."""
        if self.form == "fp8":
            return self.codes.view(torch.float8_e4m3fn).float() * self.scales
        numbers = E2M1[(self.codes & 7).long()]
        numbers = torch.where(self.codes > 7, -numbers, numbers)
        return numbers * spread(self.scales * self.whole, self.codes.shape[1], BLOCK)


def to_floats(weight: Tensor, form: str, name: str = "the weight") -> Floats:
    """weight (n, k) float32 -> its numbers.  The largest number of each group is the largest that can be said."""
    if form == "fp8":
        scales = half_scales(weight.abs().amax(1, keepdim=True) / E4M3_LARGEST)
        return Floats(as_e4m3(weight / scales).view(torch.uint8), scales, torch.ones(1), form)
    if weight.shape[1] % BLOCK:
        raise InputError(f"{name}: {weight.shape[1]} input channels are no multiple of {BLOCK}, as nvfp4 needs")
    return in_blocks(weight, whole_of(weight.abs().max()))


def whole_of(largest: Tensor) -> Tensor:
    """The scale of scales (1), for numbers up to `largest`."""
    return (largest.reshape(1) / (E2M1[-1] * E4M3_LARGEST)).clamp(min=torch.finfo(torch.float32).tiny)


def in_blocks(x: Tensor, whole: Tensor) -> Floats:
    """x (n, k) as nvfp4 with that scale of scales; what lies beyond it becomes the largest number."""
    largest = x.abs().unflatten(1, (-1, BLOCK)).amax(-1) / E2M1[-1]  # (n, g)
    scales = as_e4m3((largest / whole).clamp(min=E4M3_SMALLEST)).float()
    return Floats(_as_e2m1(x / spread(scales * whole, x.shape[1], BLOCK)), scales, whole, "nvfp4")


def as_e4m3(x: Tensor) -> Tensor:
    """float8_e4m3fn; torch alone would make a NaN of what is too large."""
    return x.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn)


def _as_e2m1(x: Tensor) -> Tensor:
    """uint8 codes.  Steps are 0.5 up to 2, 1 up to 4, 2 up to 6, so rounding to even multiples is rounding to even
    codes."""
    size = x.abs().clamp(max=float(E2M1[-1]))
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    nearest = torch.round(size / step) * step
    return (torch.searchsorted(E2M1, nearest) + 8 * (x.signbit() & (nearest > 0))).to(torch.uint8)
