"""Several rows that are written side by side, token by token, over one padded cache.

What a row's next token is, and when it ends, is the caller's business (train/replies.py, codes.py).
Axes: b rows, s tokens of the longest, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgemm.model.transformer import KeyValues

if TYPE_CHECKING:
    from edgemm.model.unified import Unified

__all__ = ["BatchDecode"]


class BatchDecode:
    """`prompts` are ids, with room for `new_tokens` behind the longest."""

    def __init__(self, model: Unified, prompts: Sequence[list[int]], new_tokens: int) -> None:
        config, device = model.config.transformer, model.device
        self._transformer = model.transformer
        self._lengths = torch.tensor([len(row) for row in prompts], device=device)
        longest = int(self._lengths.max())
        self._prompts = torch.tensor([row + [0] * (longest - len(row)) for row in prompts], device=device)  # (b, s)
        shape = (len(prompts), config.kv_heads, longest + new_tokens, config.head_width)
        self._past: KeyValues = [
            (torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in range(config.depth)
        ]
        self._read = 0  # tokens after the prompts

    def step(self, tokens: Tensor | None = None) -> Tensor:
        """Reads the prompts, or one more token a row (b): the hidden state (b, w) behind each row's last one."""
        rows = torch.arange(len(self._lengths), device=self._lengths.device)
        if tokens is None:
            ids, write_index, last = self._prompts, torch.zeros_like(self._lengths), self._lengths - 1
            limit = torch.arange(ids.shape[1], device=ids.device).expand(len(rows), -1)
        else:
            write_index = self._lengths + self._read  # a padded slot is written over before it is seen
            ids, limit, last = tokens[:, None], write_index[:, None], torch.zeros_like(self._lengths)
            self._read += 1
        hidden, self._past = self._transformer(self._transformer.embed_tokens(ids), limit, self._past, write_index)
        return hidden[rows, last]
