"""Round to nearest: the range of each group, divided evenly.  Needs no data; the other methods are held against it.

Asymmetric numbers are those of ONNX Runtime's own block quantizer; symmetric ones put the largest weight at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemm.quantize.integers import Integers, encode, in_groups

__all__ = ["ranges", "rtn"]


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
