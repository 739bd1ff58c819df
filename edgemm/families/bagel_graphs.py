"""BAGEL's components around its weights (bagel_layers.py), with the bundle's inputs and outputs (docs/bundle.md).

A picture's tokens, and the two words around them, stand at one position and see one another: who sees beyond itself
says where a block goes on (`attention_limit`).  So a slot's number is not its place, and where the next token stands is
kept in the cache, as qwen3_vl.py keeps it.  The conditioner turns the prompt's keys back by the place where drawing
stands; the denoiser's own are at place 0, and it turns nothing.
Axes: b batch, s new tokens, T cache slots, t prefix slots, g K/V heads, d head width, p numbers in a latent token, n =
h * w latent tokens, k = n + 2 with the two words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.export.component_graphs import scatter
from edgemm.families.bagel_layers import GENERATION, BagelModel
from edgemm.families.llama import LlamaGraph
from edgemm.families.qwen3_vl import THOUSAND

__all__ = ["BlockGraph", "Conditioner", "Denoiser", "ImageDecoder", "ImageEncoder", "LatentEncoder"]

SCALE, SHIFT = 0.3611, 0.1159  # of latents; the published code's


class BlockGraph(LlamaGraph):
    """Inputs and outputs are LlamaGraph's, with a last layer of two (b, 1, T, 1): thousands (of 1024) and ones."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past, thousands, ones = (
            tensors
        )
        x = self.look_up(input_ids, image_tokens, image_index)
        places = self.places(write_index, attention_limit, thousands, ones)
        x, present = self.read(x, self.placed(places, attention_limit, past), write_index, past)
        high = ((places + 1).float() / THOUSAND).floor().long()  # however it was rounded, the two add up
        for cache, part in ((thousands, high), (ones, places + 1 - high * THOUSAND)):
            present.append(scatter(cache, part.float()[:, None, :, None], write_index))
        return self.answer(x, logits_index), *present

    def places(self, write_index: Tensor, attention_limit: Tensor, thousands: Tensor, ones: Tensor) -> Tensor:
        """Where each new token stands, (b, s): a block's tokens at one place.  A block is read in one run."""
        start, new = next_place(write_index, thousands, ones), torch.arange(attention_limit.shape[1])
        moves = attention_limit <= write_index[:, None] + new  # behind this token another place begins
        before = new[:, None] > new  # (s, s); a sum of them, since TensorRT 10.3 has no cumulative one
        return start + (before & moves[:, None]).long().sum(2)


def next_place(slots_read: Tensor, thousands: Tensor, ones: Tensor) -> Tensor:
    """Where the token after the first `slots_read` (b) stands, (b, 1)."""
    last = (slots_read - 1).clamp(min=0)[:, None, None, None]
    high, low = (cache.gather(2, last)[:, :, 0, 0].long() for cache in (thousands, ones))
    return (high * THOUSAND + low) * (slots_read > 0)[:, None]


class Conditioner(nn.Module):
    """The first `prefix_length` slots of a cache, turned back to where drawing stands at place 0."""

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(inv_freq.float().clone(), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *past, thousands, ones, prefix_length = tensors
        angles = -next_place(prefix_length, thousands, ones).float()[..., None] * self.inv_freq  # (b, 1, d/2)
        slots = torch.arange(thousands.shape[2])
        mask = slots < prefix_length[:, None]  # (b, T)
        cos, sin = (part.expand(-1, mask.shape[1], -1) for part in (angles.cos(), angles.sin()))
        turned = [torch.onnx.ops.rotary_embedding(keys, cos, sin) for keys in past[::2]]
        return mask, *(tensor for pair in zip(turned, past[1::2], strict=True) for tensor in pair)


class Denoiser(nn.Module):
    """Latents (b, p, h, w) at a time to their velocity, over a prefix.

    It also gives what its own rows leave in a cache, (b, g, k, d) a layer, and where they stand: a picture to edit is
    read that way, at time 0, before the prompt.
    """

    def __init__(self, model: BagelModel, start: int, end: int) -> None:
        super().__init__()
        text = model.language_model.model
        self.layers, self.norm_moe_gen = text.layers, text.norm_moe_gen
        self.vae2llm, self.llm2vae, self.time_embedder = model.vae2llm, model.llm2vae, model.time_embedder
        self.latent_pos_embed = model.latent_pos_embed
        self.words = nn.Buffer(text.embed_tokens.weight.detach()[[start, end]].clone(), persistent=False)  # (2, w)

    def forward(self, noisy: Tensor, time: Tensor, prefix_mask: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        b, _, h, w = noisy.shape
        x = self.vae2llm(noisy.flatten(2).transpose(1, 2)) + self.time_embedder(time)[:, None]
        x = x + self.latent_pos_embed(h, w)
        words = self.words.expand(b, -1, -1)
        own = torch.ones(b, h * w + 2, dtype=torch.bool)
        mask = torch.cat([prefix_mask, own], dim=1)[:, None, None]  # (b, 1, 1, t + k)
        mask = mask.expand(-1, -1, h * w + 2, -1)
        left: list[Tensor] = []
        for layer, keys, values in zip(self.layers, pairs[::2], pairs[1::2], strict=True):
            words, x, *block = self._layer(layer, words, x, mask, keys, values)
            left += block
        velocity = self.llm2vae(self.norm_moe_gen(x)).transpose(1, 2).unflatten(2, (h, w))
        first = torch.zeros(b, 1, h * w + 2, 1)  # a picture in an empty context stands at place 0, and the next at 1
        return velocity, *left, first, first + 1

    def _layer(
        self, layer: Any, words: Tensor, x: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, ...]:
        attention = layer.self_attn
        normed = layer.input_layernorm(words), layer.input_layernorm_moe_gen(x)
        queries, own_keys, own_values = (self._heads(attention, part, *normed) for part in "qkv")
        every_key, every_value = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
        attended = torch.onnx.ops.attention(queries, every_key, every_value, mask)[0]
        attended = attended.transpose(1, 2).flatten(2)  # (b, k, w)
        first, middle, last = attended[:, :1], attended[:, 1:-1], attended[:, -1:]
        words = words + attention.o_proj(torch.cat([first, last], dim=1))
        words = words + layer.mlp(layer.post_attention_layernorm(words))
        x = x + attention.o_proj_moe_gen(middle)
        x = x + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(x))
        return words, x, own_keys, own_values

    @staticmethod
    def _heads(attention: Any, part: str, words: Tensor, x: Tensor) -> Tensor:
        """(b, 2, w) and (b, n, w) -> (b, heads, k, d): start, latents, end."""
        both = []
        for end, rows in (("", words), (GENERATION, x)):
            heads = getattr(attention, f"{part}_proj{end}")(rows).unflatten(-1, (-1, attention.head_dim))
            both.append(heads if part == "v" else getattr(attention, f"{part}_norm{end}")(heads))
        return torch.cat([both[0][:, :1], both[1], both[0][:, 1:]], dim=1).transpose(1, 2)


class ImageEncoder(nn.Module):
    """Pixels (b, 3, H, W) in [0, 1] to image tokens (b, m, w)."""

    def __init__(self, model: BagelModel) -> None:
        super().__init__()
        self.tower, self.connector = model.vit_model.vision_model, model.connector
        self.places, self.patch = model.vit_pos_embed, model.sizes.vision_patch

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.connector.fc1(self.tower(2 * pixels - 1))
        x = self.connector.fc2(nn.functional.gelu(x, approximate="tanh"))
        return x + self.places(pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)


class LatentEncoder(nn.Module):
    """A picture to edit, (b, 3, H, W) in [0, 1], to latents' mean and deviation, (b, p, h, w) each."""

    def __init__(self, model: BagelModel) -> None:
        super().__init__()
        self.encoder, self.patch = model.vae.encoder, model.sizes.latent_patch

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logarithm = as_tokens(self.encoder(2 * pixels - 1), self.patch, parts=2)
        return SCALE * (mean - SHIFT), SCALE * (logarithm / 2).exp()


class ImageDecoder(nn.Module):
    """Latents (b, p, h, w) to pixels (b, 3, H, W), around [0, 1]."""

    def __init__(self, model: BagelModel) -> None:
        super().__init__()
        self.decoder, self.patch = model.vae.decoder, model.sizes.latent_patch

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(as_places(latents, self.patch) / SCALE + SHIFT) / 2 + 0.5


def as_tokens(latents: Tensor, patch: int, parts: int = 1) -> tuple[Tensor, ...]:
    """(b, parts z, h patch, w patch) -> (b, p, h, w) a part: a token's numbers are row, column, channel."""
    x = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).unflatten(1, (parts, -1))
    return x.permute(1, 0, 4, 6, 2, 3, 5).flatten(2, 4).unbind(0)  # from (b, parts, z, h, patch, w, patch)


def as_places(tokens: Tensor, patch: int) -> Tensor:
    """as_tokens, undone."""
    x = tokens.unflatten(1, (patch, patch, -1))  # (b, patch, patch, z, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
