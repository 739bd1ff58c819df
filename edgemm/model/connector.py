"""The connector design: a frozen language model, learned queries behind the prompt, and a projector to the denoiser.

The queries (config.TransformerConfig.queries) are tokens that close every drawing prompt; what the language model makes
of them is all that the denoiser sees, as in MetaQueries (arXiv:2504.06256).  Here their keys and values are cut out of
the cache and projected; the pooled prompt is their values in the deepest layer, side by side.
It knows cached tensors, never ids, time or pictures.
Axes: b batch, T cache slots, q queries, g heads and d head width of the transformer, L prefix layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemm.config import ModelConfig
from edgemm.model.conditioner import Conditioner, Prefix
from edgemm.model.transformer import KeyValues

__all__ = ["Connector"]


class Connector(Conditioner):
    @staticmethod
    def pooled_width(config: ModelConfig) -> int:
        source = config.transformer
        return source.queries * source.kv_heads * source.head_width

    def pool(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Tensor:
        return self._side_by_side(self._queries_of(cached, prefix_length))

    def forward(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Prefix:
        """The same as the base's, with t = q: keys and values (b, g, T, d) of the prefix layers -> Prefix."""
        queries = self._queries_of(cached, prefix_length)
        used = torch.ones_like(queries[0][0][:, 0, :, 0], dtype=torch.bool)  # (b, q)
        asked = prompt_mask.sum(1, keepdim=True) > 0
        return self.project(queries, self._side_by_side(queries), used, asked)

    def _queries_of(self, cached: KeyValues, prefix_length: Tensor) -> KeyValues:
        """Keys and values (b, g, q, d) of the prompt's last q slots."""
        slots = prefix_length[:, None] - self.queries + torch.arange(self.queries, device=prefix_length.device)

        def cut(x: Tensor) -> Tensor:
            return x.gather(2, slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        return [(cut(keys), cut(values)) for keys, values in cached]

    @staticmethod
    def _side_by_side(queries: KeyValues) -> Tensor:
        """(b, q*g*d)"""
        return queries[-1][1].float().transpose(1, 2).flatten(1)
