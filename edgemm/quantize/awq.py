"""AWQ (arXiv:2306.00978): channels with large inputs get finer steps, by making their weights larger beforehand.

The factors are a power of each channel's root mean square input; the power is searched, at each site for all its
readers together, by the error of their outputs on the calibration inputs, which the inputs' gram matrix gives exactly.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgemm.quantize.floats import to_floats
from edgemm.quantize.rtn import rtn
from edgemm.quantize.spec import Layer

__all__ = ["awq_factors", "output_error"]

POWERS = tuple(step / 10 for step in range(9))


def awq_factors(weights: Sequence[Tensor], layers: Sequence[Layer], gram: Tensor) -> Tensor:
    """Readers' weights (n, k) and what they shall be, gram (k, k) -> factors (k), all 1 where nothing helps."""
    size = gram.diagonal().clamp(min=1e-12).sqrt()
    best, found = float("inf"), torch.ones_like(size)
    for power in POWERS:
        factors = size**power
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight, layer in zip(weights, layers, strict=True):
            if layer.bits is not None:
                scaled = weight * factors
                if layer.form == "int":
                    numbers = rtn(scaled, layer.bits, layer.group, layer.symmetric)
                else:
                    numbers = to_floats(scaled, layer.form)
                said = numbers.dequantized() / factors
                error += output_error(said - weight, gram)
        if error < best:
            best, found = error, factors
    return found


def output_error(difference: Tensor, gram: Tensor) -> float:
    """Mean square of difference @ x over the inputs x that gram is the mean of."""
    return float((difference @ gram * difference).sum())
