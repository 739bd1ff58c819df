"""Show-o2's components around its weights (showo2_layers.py), with the bundle's inputs and outputs (docs/bundle.md).

The prompt never sees the picture, in neither of the two transformers that drawing goes through: the Qwen2 and the head.
So the keys and values of both are its prefix.  The conditioner turns the Qwen2's back to where the picture stands at
position 0, and takes the kept hidden states through the head at positions before 0.
Axes: b batch, T cache slots, t prefix slots, r = n + 1 the time's row and the picture's, w width, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.families.llama import Rows, rms
from edgemm.families.prefix import OverPrefix, TurnedBack, over_prefix
from edgemm.families.showo2_layers import ShowO2, head_inv_freq
from edgemm.families.wan_autoencoder import LATENT_MEAN, LATENT_STD

__all__ = ["Conditioner", "Denoiser", "ImageDecoder", "ImageEncoder"]


def constant(numbers: tuple[float, ...]) -> nn.Buffer:
    """Of each channel, for (b, z, h, w)."""
    return nn.Buffer(torch.tensor(numbers)[:, None, None], persistent=False)


class ImageEncoder(nn.Module):
    """Pixels (b, 3, H, W) in [0, 1] to rows (b, 1 + n, w): the time's, of no noise, and the picture's."""

    def __init__(self, model: ShowO2) -> None:
        super().__init__()
        self.encoder, self.conv1, self.moments = model.vae.encoder, model.vae.conv1, model.vae.moments
        self.rows, self.used = model.picture_rows, _seeing(model)
        self.mean, self.deviation = constant(LATENT_MEAN), constant(LATENT_STD)

    def latents(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """(b, z, h, w); the published code adds noise that is not divided by the deviation, the graph none."""
        mean, logarithm = self.moments(2 * pixels - 1)
        scaled = (mean - self.mean) / self.deviation
        return scaled if noise is None else scaled + (logarithm / 2).exp() * noise

    def forward(self, pixels: Tensor) -> Tensor:
        rows, _ = self.rows(self.latents(pixels), torch.ones(pixels.shape[0]))
        return rows


def _seeing(model: ShowO2) -> nn.ModuleList:
    """What `ShowO2.picture_rows` uses, for a graph's module to own."""
    und, gen, places = model.image_embedder_und, model.image_embedder_gen, model.position_embedding
    return nn.ModuleList(
        [und, gen, places, model.und_trans, model.fusion_proj, model.time_embed, model.time_embed_proj]
    )


class HeadOverPrefix(nn.Module):
    """Rows (b, r, w) through one layer of the head, behind a prefix."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.attention = layer, layer.self_attn

    def heads(self, part: str, x: Tensor, rows: Rows) -> Tensor:
        """(b, r, w) -> (b, heads, r, d), normed and turned."""
        attention = self.attention
        found = getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim))
        if part == "v":
            return found.transpose(1, 2)
        normed = rms(getattr(attention, f"{part}_norm"), found).transpose(1, 2)
        return torch.onnx.ops.rotary_embedding(normed, rows.cos, rows.sin)

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        found = torch.onnx.ops.attention(queries, keys, values, mask)[0]
        return self.attention.o_proj(found.transpose(1, 2).flatten(2))

    def words(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """The prompt's rows behind the layer, and their keys and values; no time modulates them."""
        layer = self.layer
        normed = rms(layer.input_layernorm, x)
        queries, keys, values = (self.heads(part, normed, rows) for part in "qkv")
        x = x + self.attended(queries, keys, values, rows.mask)
        return x + layer.feed(rms(layer.post_attention_layernorm, x)), keys, values

    def picture(self, x: Tensor, e: Tensor, rows: Rows, keys: Tensor, values: Tensor) -> Tensor:
        """The picture's rows behind the layer, modulated by the time's embedding e (b, w)."""
        layer = self.layer
        shift, scale, gate, shift2, scale2, gate2 = layer.adaLN_modulation(e)[:, None].chunk(6, dim=-1)
        normed = rms(layer.input_layernorm, x) * (1 + scale) + shift
        queries, own_keys, own_values = (self.heads(part, normed, rows) for part in "qkv")
        every = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
        x = x + gate * self.attended(queries, *every, rows.mask)
        return x + gate2 * layer.feed(rms(layer.post_attention_layernorm, x) * (1 + scale2) + shift2)


class Conditioner(nn.Module):
    """Caches of a prompt of `prefix_length` to the prefix of the Qwen2's layers and of the head's."""

    def __init__(self, model: ShowO2) -> None:
        super().__init__()
        self.turned, self.diff_proj = TurnedBack(model.showo.model.rotary_emb.inv_freq), model.diff_proj
        self.layers = nn.ModuleList([HeadOverPrefix(layer) for layer in model.diffusion_head_a])
        self.inv_freq = nn.Buffer(head_inv_freq(model.sizes).float(), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *past, hidden, prefix_length = tensors
        mask, *pairs = self.turned(*past, prefix_length)
        x, slots = self.diff_proj(hidden[:, 0]), torch.arange(hidden.shape[2])
        places = slots - prefix_length[:, None]  # (b, T): the picture begins at 0
        angles = places.float()[..., None] * self.inv_freq  # (b, T, d/2)
        causal = (slots[None, :] <= slots[:, None])[None, None].expand(x.shape[0], -1, -1, -1)
        rows = Rows(angles.cos(), angles.sin(), causal)
        layers: Any = self.layers
        for layer in layers:
            x, keys, values = layer.words(x, rows)
            pairs += [keys, values]
        return mask, *pairs


class Denoiser(OverPrefix):
    """Latents (b, z, h, w) at t (b) to their velocity, over a prefix; all of its own rows see one another."""

    def __init__(self, model: ShowO2) -> None:
        super().__init__(model.showo.model, None)
        del self.embed_tokens  # the prompt was read already
        self.picture_rows, self.as_latents, self.used = model.picture_rows, model.as_latents, _seeing(model)
        self.diff_proj, self.last = model.diff_proj, model.diffusion_head_b
        self.head_layers = nn.ModuleList([HeadOverPrefix(layer) for layer in model.diffusion_head_a])
        self.head_inv_freq = nn.Buffer(head_inv_freq(model.sizes).float(), persistent=False)

    def forward(self, latents: Tensor, time: Tensor, prefix_mask: Tensor, *pairs: Tensor) -> Tensor:
        rows, e = self.picture_rows(latents, time)
        b, r, depth = rows.shape[0], rows.shape[1], 2 * len(self.layers)
        own = torch.ones(r, r, dtype=torch.bool)
        x = self.diff_proj(self.behind(rows, prefix_mask, pairs[:depth], own))
        behind = over_prefix(self.head_inv_freq, prefix_mask, own, b)
        layers: Any = self.head_layers
        for layer, *pair in zip(layers, pairs[depth::2], pairs[depth + 1 :: 2], strict=True):
            x = layer.picture(x, e, behind, *pair)
        return self.as_latents(self.last(x[:, 1:], e))


class ImageDecoder(nn.Module):
    """Latents (b, z, h, w) to pixels (b, 3, H, W), around [0, 1]."""

    def __init__(self, model: ShowO2) -> None:
        super().__init__()
        self.decoder, self.conv2, self.pixels = model.vae.decoder, model.vae.conv2, model.vae.forward
        self.mean, self.deviation = constant(LATENT_MEAN), constant(LATENT_STD)

    def forward(self, latents: Tensor) -> Tensor:
        return self.pixels(latents * self.deviation + self.mean) / 2 + 0.5
