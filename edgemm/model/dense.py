"""The dense design, to compare the mixture with: one set of weights reads text and draws (arXiv:2408.11039).

Noisy image tokens go through the transformer's own layers over its own cached keys and values; they see one another and
the whole prompt.  Only what turns numbers into tokens and back is the denoiser's.  There are no adaptive norms: time
and the pooled prompt are added to every token.  The layers are the transformer's and are stored once, in it.
Axes: b batch, n image tokens, p numbers a token, w width, g key/value heads, d head width, t prefix slots.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgemm.config import ModelConfig
from edgemm.model.attention import attend, rotary_tables
from edgemm.model.conditioner import Prefix
from edgemm.model.denoiser import time_features
from edgemm.model.transformer import Layer, Transformer

__all__ = ["DenseDenoiser"]


class DenseDenoiser(nn.Module):
    def __init__(self, config: ModelConfig, transformer: Transformer, skip: int) -> None:
        super().__init__()
        expert, tokens = config.denoiser, config.image_tokens
        self.shared = (transformer,)  # in a tuple: its weights are not this module's
        self.skip = skip
        self.embed = nn.Linear(tokens.token_width, expert.width)
        self.layout_proj = nn.Linear(expert.layout_width, expert.width, bias=False)
        self.position = nn.Parameter(torch.randn(tokens.token_count, expert.width) * 0.02)
        self.time_width = 256
        self.time_mlp = nn.Sequential(
            nn.Linear(self.time_width, expert.width), nn.SiLU(), nn.Linear(expert.width, expert.width)
        )
        self.norm = nn.LayerNorm(expert.width)
        self.head = nn.Linear(expert.width, tokens.token_width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, noisy_tokens: Tensor, time: Tensor, prefix: Prefix, step_size: Tensor | None = None) -> Tensor:
        """noisy_tokens (b, n, p) at time (b) in [0, 1), over the prefix -> the clean tokens (b, n, p) it expects."""
        config = self.shared[0].config
        features = time_features(time, self.time_width).to(noisy_tokens.dtype)
        condition = self.time_mlp(features) + prefix.prompt_vector
        x = self.embed(noisy_tokens) + self.layout_proj(prefix.layout) + self.position + condition[:, None]
        b, n, _ = x.shape
        start = prefix.mask.long().sum(1, keepdim=True) + self.skip  # right behind the prompt
        cos, sin = rotary_tables(start + torch.arange(n, device=x.device), config.head_width, config.rope_theta)
        own = torch.ones(b, n, dtype=torch.bool, device=x.device)
        mask = torch.cat((prefix.mask, own), dim=1)[:, None, None]  # (b, 1, 1, t + n)
        layers = cast("list[Layer]", self.shared[0].layers)
        for layer, keys, values in zip(layers, prefix.keys, prefix.values, strict=True):
            queries, own_keys, own_values = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            joint_keys = torch.cat((keys.to(own_keys.dtype), own_keys), dim=2)  # (b, g, t + n, d)
            joint_values = torch.cat((values.to(own_values.dtype), own_values), dim=2)
            x = x + layer.self_attn.output(attend(queries, joint_keys, joint_values, mask))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.head(self.norm(x))
