"""Rows of unlike lengths in two groups instead of one, so that less is computed of what only fills rows up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["by_length", "in_row_order"]

WORTH = 0.9  # share of the tokens that two groups may have for a second pass to pay
LONG = 200  # tokens of the longest row from which two passes pay anyway: the scores of one overflow the caches


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups that are filled up to their longest with the fewest tokens; in one where two save little."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    longest = lengths[order[-1]]

    def tokens(short: int) -> int:
        return short * lengths[order[short - 1]] + (len(order) - short) * longest

    short = min(range(1, len(order)), key=tokens, default=0)
    if not short or tokens(short) > (WORTH if longest < LONG else 1) * len(order) * longest:
        return [list(range(len(order)))]
    return [sorted(order[:short]), sorted(order[short:])]


def in_row_order(parts: Sequence[Tensor], groups: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """What each group's rows gave, `counts[row]` entries a row, as if all had run together."""
    pieces = {
        row: piece
        for part, rows in zip(parts, groups, strict=True)
        for row, piece in zip(rows, part.split([counts[row] for row in rows]), strict=True)
    }
    return torch.cat([pieces[row] for row in sorted(pieces)])
