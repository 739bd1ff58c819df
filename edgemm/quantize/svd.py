"""A low-rank branch in float beside a 4-bit weight (SVDQuant, arXiv:2411.05007): it carries what rounds worst.

    W x = up @ (down @ x) + (W - up @ down) x      the last product in 4 bits

The singular values are those of the weight times each channel's root mean square input, so that the branch spends its
rank on what is heard in the output.   Axes: n output channels, k input channels, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["low_rank_branch"]


def low_rank_branch(weight: Tensor, squares: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """weight (n, k), mean square of each input channel (k) -> down (r, k) and up (n, r)."""
    loudness = (squares + 1e-3 * squares.mean()).clamp(min=1e-12).sqrt()
    left, values, right = torch.linalg.svd(weight * loudness, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank] / loudness, left[:, :rank] * root
