"""A connector's prompts up to its queries, read once: the transformer is frozen, and only the queries learn.

What a prompt's words left in the cache never changes, so a step reads the queries alone behind it.
Axes: c captions, q queries, T slots of the longest prompt, g key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.train.prompt_store import CHUNK, STORED_BYTES

__all__ = ["QueryStore"]


class QueryStore:
    """Row i belongs to caption i."""

    def __init__(self, model: Unified, captions: Sequence[str]) -> None:
        self.model = model
        starts = range(0, len(captions), CHUNK)
        read = [model.prompt_cache(captions[start : start + CHUNK], every_layer=True) for start in starts]
        slots = max(mask.shape[1] for _, mask, _ in read)
        self.mask = torch.cat([pad(mask, (0, slots - mask.shape[1])) for _, mask, _ in read])
        self.length = torch.cat([length for *_, length in read])
        self.cached: KeyValues = []
        for layer in range(len(read[0][0])):
            pairs = [(cached[layer], (0, 0, 0, slots - mask.shape[1])) for cached, mask, _ in read]
            keys, values = (torch.cat([pad(pair[i], behind) for pair, behind in pairs]) for i in (0, 1))
            self.cached.append((keys, values))  # (c, g, T, d)

    @staticmethod
    def fits(model: Unified, captions: Sequence[str]) -> bool:
        """Whether all prompts may be kept, in float32 and every layer."""
        source = model.config.transformer
        around = len(model.encode(model.config.draw.open)) + len(model.encode(model.config.draw.close))
        slots = around + max(len(model.encode(" " + caption)) for caption in captions)
        return 8 * source.depth * source.kv_heads * source.head_width * slots * len(captions) <= STORED_BYTES

    def read(self, rows: Tensor) -> tuple[KeyValues, Tensor, Tensor]:
        """What Unified.prompt_cache gives of some captions, with a gradient to the queries."""
        transformer, layers = self.model.transformer, self.model.config.denoiser.prefix_layers
        assert transformer.queries is not None
        rows = rows.to(self.length.device)
        queries = transformer.queries.weight.expand(len(rows), -1, -1)  # (b, q, w)
        first = self.length[rows] - queries.shape[1]
        limit = first[:, None] + torch.arange(queries.shape[1], device=rows.device)
        past = [(keys[rows], values[rows]) for keys, values in self.cached]
        _, present = transformer(queries, limit, past, first, depth=len(past))
        return [present[layer] for layer in layers], self.mask[rows], self.length[rows]
