"""The autoregressive decoder: text tokens and clean image tokens in, hidden states and keys and values out.

A Llama-shaped transformer (arXiv:2302.13971).  Who may see whom is one number a query, the last cache slot it may look
at, so causal text and bidirectional image blocks need no second path.  Module names are those of Hugging Face's Llama,
so that LoRA target names mean what users expect.  It knows embeddings and slots, never strings or pictures.
Axes: b batch, s new tokens, T cache slots, m image tokens, w width, h/g query and key/value heads, d head width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgemm.model.config import TransformerConfig
from edgemm.model.feed_forward import feed_forward

__all__ = [
    "KeyValues",
    "Transformer",
    "write_slots",
    "RMSNorm",
    "apply_rotary",
    "attend",
    "rotary_tables",
    "visible_up_to",
]

KeyValues = list[tuple[Tensor, Tensor]]  # one (keys, values) a layer, each (b, g, T, d), keys after rotary embedding


def write_slots(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Copy of cache (b, g, T, d) with update (b, g, s, d) at slots write_index (b) onwards: ONNX's TensorScatter."""
    slots = write_index[:, None] + torch.arange(update.shape[2], device=cache.device)  # (b, s)
    return cache.scatter(2, slots[:, None, :, None].expand_as(update), update.to(cache.dtype))


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, s, _ = x.shape
        d = self.config.head_width
        queries = self.q_proj(x).view(b, s, -1, d).transpose(1, 2)  # (b, h, s, d)
        keys = self.k_proj(x).view(b, s, -1, d).transpose(1, 2)  # (b, g, s, d)
        values = self.v_proj(x).view(b, s, -1, d).transpose(1, 2)  # (b, g, s, d)
        return apply_rotary(queries, cos, sin), apply_rotary(keys, cos, sin), values

    def output(self, attended: Tensor) -> Tensor:
        b, _, s, _ = attended.shape
        return self.o_proj(attended.transpose(1, 2).reshape(b, s, -1))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = feed_forward(config.width, config.ffn_width, config.mixture)


class Transformer(nn.Module):
    """The decoder's weights and its three moves: embed, forward, logits (the head is the embedding, transposed)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.queries = nn.Embedding(config.queries, config.width) if config.queries else None

    def embed_ids(self, input_ids: Tensor) -> Tensor:
        """(b, s) ids -> (b, s, w); the ids behind the vocabulary are the learned queries."""
        if self.queries is None:
            return self.embed_tokens(input_ids)
        vocabulary = self.config.vocab_size
        words = self.embed_tokens(input_ids.clamp(max=vocabulary - 1))
        asked = self.queries((input_ids - vocabulary).clamp(min=0))
        return torch.where((input_ids >= vocabulary)[..., None], asked.to(words.dtype), words)

    def embed(self, input_ids: Tensor, image_tokens: Tensor, image_index: Tensor, named: bool = False) -> Tensor:
        """(b, s) ids, with row image_index (b, s) of image_tokens (b, m, w) wherever it is not -1 -> (b, s, w).

        `named` (graphs): a node's row is added to its words: row -2 - image_index, where that is not negative.
        """
        text = self.embed_ids(input_ids)
        rows = torch.where(image_index < 0, -2 - image_index, image_index) if named else image_index
        found = image_tokens.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1]))
        found = found.to(text.dtype)
        if named:
            text = torch.where((image_index < -1)[..., None], text + found, text)
        return torch.where((image_index >= 0)[..., None], found, text)

    def forward(
        self,
        x: Tensor,
        attention_limit: Tensor,
        past: KeyValues | None = None,
        write_index: Tensor | None = None,
        depth: int | None = None,
        pictured: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """x (b, s, w) -> normed hidden states (b, s, w) and each layer's keys and values.

        attention_limit (b, s) is the last slot each query may see.  With `past` the new keys and values are written at
        write_index (b) and the whole cache is returned; without it the slots are the s positions themselves.  `depth`
        stops early after so many layers (the prompt's prefix needs no more), and then the hidden states are not normed.
        `pictured` (b, s) is true for tokens of pictures, for routers that tell them from words.
        """
        b, s, _ = x.shape
        if write_index is None:
            write_index = torch.zeros(b, dtype=torch.long, device=x.device)
        positions = write_index[:, None] + torch.arange(s, device=x.device)
        cos, sin = rotary_tables(positions, self.config.head_width, self.config.rope_theta)
        mask = visible_up_to(attention_limit, s if past is None else past[0][0].shape[2])
        present: KeyValues = []
        for index, layer in enumerate(cast("list[Layer]", self.layers[:depth])):
            queries, keys, values = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            if past is not None:
                keys = write_slots(past[index][0], keys, write_index)
                values = write_slots(past[index][1], values, write_index)
            present.append((keys, values))
            x = x + layer.self_attn.output(attend(queries, keys.to(queries.dtype), values.to(queries.dtype), mask))
            x = x + layer.mlp(layer.post_attention_layernorm(x), pictured)
        return (x if depth is not None else self.norm(x)), present

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., w) -> (..., vocab); the output head shares the embedding's weights."""
        return hidden @ self.embed_tokens.weight.T.to(hidden.dtype)


# Attention as plain matrix products, rotary embedding and RMS normalization.
#
# Written out rather than fused because on CPUs the fused backward with a mask is several times slower in bfloat16, and
# because an exporter can see every product.  Knows tensors only: no configs, caches or files.
# Axes: b batch, h query heads, g key/value heads, q queries, k keys, d head width.


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (b, q, d/2) float32, of rotary embedding (arXiv:2104.09864) at the given (b, q) positions."""
    rates = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width)
    angles = positions.float()[..., None] * rates  # (b, q, d/2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (b, h, q, d) by the tables (b, q, d/2); first half against second half, as Llama's released weights do."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def visible_up_to(limit: Tensor, slots: int) -> Tensor:
    """Mask (b, 1, q, k), true where key slot k <= limit (b, q): the one rule behind causal text and image blocks."""
    return torch.arange(slots, device=limit.device) <= limit[:, None, :, None]


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention: queries (b, h, q, d), keys and values (b, g, k, d), mask (b, 1, q | 1, k) -> (b, h, q, d).

    Query heads that share a key/value head are folded into the query axis: one product a group, nothing repeated.
    """
    b, h, q, d = queries.shape
    g = keys.shape[1]
    folded = queries.reshape(b, g, h // g * q, d) * d**-0.5
    scores = folded @ keys.transpose(-1, -2)  # (b, g, h/g*q, k)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(~mask, float("-inf"))
        scores = (scores.reshape(b, g, h // g, q, -1) + bias[:, :, None]).reshape(scores.shape)
    weights = scores.float().softmax(dim=-1).to(values.dtype)
    return (weights @ values).reshape(b, h, q, d)
