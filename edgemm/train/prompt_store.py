"""Keys and values of every caption, computed once: the transformer is frozen while drawing is taught.

Only the slots after the template's opening are kept, in bfloat16.
Axes: c captions, g key/value heads, t slots kept, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgemm.model.conditioner import pool_prompt
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified

__all__ = ["PromptStore", "fits_in_memory"]

CHUNK = 64
STORED_BYTES = 8 << 30  # of prompts, in each process


def fits_in_memory(model: Unified, captions: Sequence[str]) -> bool:
    """Whether all prompts may be stored; more of them are read anew at every step."""
    source, layers = model.config.transformer, len(model.config.denoiser.prefix_layers)
    slots = max(len(model.encode(" " + caption)) for caption in captions)
    return 4 * layers * source.kv_heads * source.head_width * slots * len(captions) <= STORED_BYTES


class PromptStore:
    """The cache of a list of captions; row i belongs to caption i."""

    def __init__(self, model: Unified, captions: Sequence[str]) -> None:
        layers, skip = len(model.config.denoiser.prefix_layers), model.conditioner.skip
        longest = max(len(model.encode(" " + caption)) for caption in captions)
        slots = longest + len(model.encode(model.config.draw.close))
        g, d = model.config.transformer.kv_heads, model.config.transformer.head_width
        self.device = model.denoiser.position.device
        self.cached = torch.zeros(layers, 2, len(captions), g, slots, d, dtype=torch.bfloat16, device=self.device)
        self.mask = torch.zeros(len(captions), slots, device=self.device)
        self.length = torch.zeros(len(captions), dtype=torch.long, device=self.device)
        for start in range(0, len(captions), CHUNK):
            chunk = slice(start, start + CHUNK)
            cached, mask, length = model.prompt_cache(captions[chunk])
            kept = mask.shape[1] - skip
            for layer, pair in enumerate(cached):
                for which, tensor in enumerate(pair):
                    self.cached[layer, which, chunk, :, :kept] = tensor[:, :, skip:].bfloat16()
            self.mask[chunk, :kept] = mask[:, skip:]
            self.length[chunk] = length - skip

    def pooled(self) -> Tensor:
        """(c, features) of all captions, for fitting the conditioner's whitening."""
        used = torch.arange(self.mask.shape[1], device=self.device) < self.length[:, None]
        return pool_prompt([self.cached[layer, 1] for layer in range(len(self.cached))], self.mask, used)

    def rows(self, rows: Tensor, cut: bool = True) -> tuple[KeyValues, Tensor, Tensor]:
        """Keys and values, prompt mask and length of some captions, cut to the longest among them (a compiled denoiser
        wants the same shape every time instead)."""
        rows = rows.to(self.device)
        slots = int(self.length[rows].max()) if cut else self.mask.shape[1]
        cached = self.cached[:, :, rows, :, :slots]
        return [(layer[0], layer[1]) for layer in cached], self.mask[rows, :slots], self.length[rows]
