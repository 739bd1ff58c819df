"""The transformer component of Qwen3-VL: Qwen3 whose positions have three axes, and pictures in its first layers too.

A word stands at one number on all three axes; a picture's tokens stand at its start in time, and at row and column
beyond it, and what follows goes on after its longer side (multimodal rotary embedding, arXiv:2409.12191).  So a slot's
number is not its place: where the next token stands is kept in the cache beside keys and values, in two tensors of one
number a slot, thousands (of 1024) and ones, which float16 holds exactly.
A picture's tokens carry the features of several layers of the tower; those after the first are added to the hidden
states behind the first layers (DeepStack, arXiv:2406.04334).
Axes: b batch, s new tokens, T cache slots, m image tokens, e features side by side, h heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.export.component_graphs import scatter
from edgemm.families.llama_graph import LlamaGraph
from edgemm.model.attention import visible_up_to

__all__ = ["GridGraph"]

THOUSAND = 1024


class GridGraph(LlamaGraph):
    """Inputs and outputs are LlamaGraph's, with image tokens (b, m, e*w) and a last `layer` of two (b, 1, T, 1)."""

    def __init__(self, text: Any, head: nn.Module, side: int, features: int) -> None:
        super().__init__(text, head)
        self.side, self.features = side, features  # tokens along a picture's side; e
        axes = torch.zeros(3, self.inv_freq.shape[0])
        axes[0] = 1  # time, where no other has a frequency
        for axis, section in enumerate(text.rotary_emb.mrope_section[1:], start=1):
            axes[:, axis : section * 3 : 3] = 0
            axes[axis, axis : section * 3 : 3] = 1
        self.rates = nn.Buffer(axes * self.inv_freq, persistent=False)  # (3, d/2)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past, thousands, ones = (
            tensors
        )
        pictured = image_index >= 0
        rows = image_index.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1])
        first, *deeper = image_tokens.gather(1, rows).chunk(self.features, dim=-1)  # (b, s, w) each
        x = torch.where(pictured[..., None], first, self.embed_tokens(input_ids))
        shown = pictured[..., None].float()
        places, following = self.places(image_index, write_index, thousands, ones)
        angles = (places.float()[..., None] * self.rates).sum(2)  # (b, s, d/2)
        cos, sin = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
        mask = visible_up_to(attention_limit, past[0].shape[2])
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x, *slots = self.run_layer(layer, x, cos, sin, mask, write_index, past[2 * index : 2 * index + 2])
            present += slots
            if index < len(deeper):
                x = x + deeper[index] * shown
        for cache, part in ((thousands, following // THOUSAND), (ones, following % THOUSAND)):
            present.append(scatter(cache, part.float()[:, None, :, None], write_index))
        return self.answer(x, logits_index), *present

    def places(
        self, image_index: Tensor, write_index: Tensor, thousands: Tensor, ones: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Time, row and column of each new token (b, s, 3), and where the one after it stands (b, s).

        Behind any token of a picture that is the end of the picture, so reading may stop and go on in the middle.
        """
        last = (write_index - 1).clamp(min=0)[:, None, None, None]
        high, low = (cache.gather(2, last)[:, :, 0, 0].long() for cache in (thousands, ones))  # (b, 1)
        start = (high * THOUSAND + low) * (write_index > 0)[:, None]
        pictured = image_index >= 0
        within = image_index.clamp(min=0) % self.side**2  # which token of its picture
        opens = pictured & (within == 0)
        following = start + (~pictured).long().cumsum(1) + self.side * opens.long().cumsum(1)
        time = following - torch.where(pictured, self.side, 1)
        row, column = (torch.where(pictured, offset, 0) for offset in (within // self.side, within % self.side))
        return torch.stack([time, time + row, time + column], dim=-1), following
