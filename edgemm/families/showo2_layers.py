"""Show-o2's modules around its published tensors, and its loops as they were published.

One Qwen2 reads and draws.  A picture is the latents of Wan's autoencoder, whether it is read or drawn: two ways of
seeing them, one through SigLIP's layers, are fused to tokens.  For drawing the Qwen2's hidden states, the
prompt's too, go through a smaller transformer, the head, that the time modulates at the picture's rows alone.
Axes: b batch, r rows, n picture tokens, t prefix slots, w width, z latent channels, h rows and v columns of latents.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.families.own_modules import RmsNorm

__all__ = ["HEAD_SIZES", "ShowO2", "head_inv_freq"]

FREQUENCIES = 256  # of a time
SLOWEST = 10_000.0
HEAD_SIZES = {  # config.json's name or, as in what people have, none and these numbers of the published code
    "head_hidden_size": 2048,
    "head_head_dim": 64,
    "head_heads": 32,
    "head_kv": 8,
    "head_intermediate_size": 8192,
}
HEAD_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
HEAD_EPSILON, INNER_EPSILON = 1e-5, 1e-6  # of a layer's norms; of queries, keys, the last layer and the fusion


class TimeEmbedding(nn.Module):
    """Of t (b), 0 the noise and 1 the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angles = time[:, None] * torch.exp(torch.arange(half).float() * (-math.log(SLOWEST) / half))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class SigLipLayer(nn.Module):
    """Names of transformers' encoder layer; `config` is that of its vision tower."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.self_attn, self.mlp, self.heads = nn.Module(), nn.Module(), config.num_attention_heads
        for part in ("q", "k", "v", "out"):
            setattr(self.self_attn, f"{part}_proj", nn.Linear(width, width))
        self.mlp.fc1, self.mlp.fc2 = (
            nn.Linear(width, config.intermediate_size),
            nn.Linear(config.intermediate_size, width),
        )
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp, normed = self.self_attn, self.mlp, self.layer_norm1(x)
        parts = [getattr(attention, f"{part}_proj")(normed).unflatten(-1, (self.heads, -1)) for part in "qkv"]
        seen = nn.functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        x = x + attention.out_proj(seen.transpose(1, 2).flatten(2))  # type: ignore[operator]
        return x + mlp.fc2(self.act(mlp.fc1(self.layer_norm2(x))))  # type: ignore[operator]


class HeadLayer(nn.Module):
    """A Llama layer with norms on queries and keys; `adaLN_modulation` gives a shift, a scale and a gate twice."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        width, narrow = sizes["head_hidden_size"], sizes["head_head_dim"]
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for part, heads in (("q", "head_heads"), ("k", "head_kv"), ("v", "head_kv")):
            setattr(self.self_attn, f"{part}_proj", nn.Linear(width, sizes[heads] * narrow, bias=False))
        self.self_attn.o_proj = nn.Linear(sizes["head_heads"] * narrow, width, bias=False)
        self.self_attn.q_norm, self.self_attn.k_norm = RmsNorm(narrow, INNER_EPSILON), RmsNorm(narrow, INNER_EPSILON)
        self.self_attn.head_dim = narrow  # type: ignore[assignment]
        inner = sizes["head_intermediate_size"]
        self.mlp.gate_proj, self.mlp.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.mlp.down_proj = nn.Linear(inner, width, bias=False)
        self.input_layernorm, self.post_attention_layernorm = (RmsNorm(width, HEAD_EPSILON) for _ in range(2))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def feed(self, x: Tensor) -> Tensor:
        mlp: Any = self.mlp
        return mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


class LastLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final, self.linear = RmsNorm(width, INNER_EPSILON), nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(e)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class ShowO2(nn.Module):
    """The whole model; `vae` is None where nobody has named its folder."""

    def __init__(self, config: dict[str, Any], showo: Any, clip: Any, vae: Any) -> None:
        super().__init__()
        self.config, self.showo, self.vae = showo.config, showo, vae
        self.sizes = {name: config.get(name, usual) for name, usual in HEAD_SIZES.items()}
        self.channels, self.patch = config["image_latent_dim"], config["patch_size"]
        self.rows, self.columns = config["image_latent_height"], config["image_latent_width"]  # of tokens
        width, narrow, seen = showo.config.hidden_size, self.sizes["head_hidden_size"], config["clip_latent_dim"]
        self.image_embedder_und = Patches(self.channels, seen, self.patch)
        self.image_embedder_gen = Patches(self.channels, width, self.patch)
        self.position_embedding = nn.Embedding(self.rows * self.columns, seen)
        self.und_trans = nn.Module()
        self.und_trans.layers = nn.ModuleList([SigLipLayer(clip) for _ in range(clip.num_hidden_layers - 1)])
        both = seen + width
        self.fusion_proj = nn.Sequential(
            RmsNorm(both, INNER_EPSILON), nn.Linear(both, width), nn.GELU(), nn.Linear(width, width)
        )
        self.time_embed, self.time_embed_proj = TimeEmbedding(narrow), nn.Linear(narrow, width)
        self.diff_proj = nn.Sequential(nn.Linear(width, narrow), nn.GELU(), nn.Linear(narrow, narrow))
        self.diffusion_head_a = nn.ModuleList([HeadLayer(self.sizes) for _ in range(config["num_diffusion_layers"])])
        self.diffusion_head_b = LastLayer(narrow, self.channels * self.patch**2)

    def image_tokens(self, latents: Tensor) -> Tensor:
        """Latents (b, z, h, v) -> (b, n, w): the same for reading and drawing."""
        x = self.image_embedder_und(latents) + self.position_embedding.weight
        for layer in self.und_trans.layers:  # type: ignore[union-attr]
            x = layer(x)
        return self.fusion_proj(torch.cat([x, self.image_embedder_gen(latents)], dim=-1))

    def picture_rows(self, latents: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (b, 1 + n, w) that begin with the time's, and the time's embedding (b, width of the head)."""
        e = self.time_embed(time)
        return torch.cat([self.time_embed_proj(e)[:, None], self.image_tokens(latents)], dim=1), e

    def as_latents(self, numbers: Tensor) -> Tensor:
        """Numbers (b, n, patch^2 z) of the last layer -> (b, z, h, v).

        Each row holds patch^2 places of the grid, one after the other in raster order: not the patch it was made from.
        """
        places = numbers.unflatten(2, (-1, self.channels)).flatten(1, 2)  # (b, h v, z)
        return places.transpose(1, 2).unflatten(2, (self.patch * self.rows, self.patch * self.columns))

    @torch.no_grad()
    def velocity(self, ids: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """Of latents (z, h, v) behind a prompt (L), all of it read at once, as the published code does."""
        own, e = self.picture_rows(latents[None], time[None])
        prompt = self.showo.get_input_embeddings()(ids[None])
        length, rows = len(ids), len(ids) + own.shape[1]
        seen = torch.ones(rows, rows, dtype=torch.bool).tril()
        seen[length:, length:] = True
        mask = torch.zeros(1, 1, rows, rows).masked_fill(~seen, torch.finfo(torch.float32).min)
        whole = torch.cat([prompt, own], dim=1)
        hidden = self.showo.model(inputs_embeds=whole, attention_mask=mask).last_hidden_state
        x, angles = self.diff_proj(hidden), torch.arange(rows).float()[:, None] * head_inv_freq(self.sizes)
        picture = (torch.arange(rows) >= length)[None, :, None]
        for layer in self.diffusion_head_a:
            x = _whole(layer, x, e, picture, angles, seen)
        return self.as_latents(self.diffusion_head_b(x[:, length:], e)[:, 1:])[0]

    @torch.no_grad()
    def draw(self, ids: Tensor, blank: Tensor, noise: Tensor, times: list[float], guidance: float) -> Tensor:
        """Latents (z, h, v) of prompt ids (L), led away from a blank prompt's."""
        z = noise
        for now, later in pairwise(times):
            v = self.velocity(ids, z, torch.tensor(now))
            if guidance != 1:
                w = self.velocity(blank, z, torch.tensor(now))
                v = w + guidance * (v - w)
            z = z + (later - now) * v
        return z


def _whole(layer: Any, x: Tensor, e: Tensor, picture: Tensor, angles: Tensor, seen: Tensor) -> Tensor:
    """A layer of the head over all rows; the words' are shifted and scaled by nothing."""
    told = layer.adaLN_modulation(e)[:, None].chunk(6, dim=-1)
    nothing = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    shift, scale, gate, shift2, scale2, gate2 = (
        torch.where(picture, part, torch.tensor(usual)) for part, usual in zip(told, nothing, strict=True)
    )
    attention, normed = layer.self_attn, layer.input_layernorm(x) * (1 + scale) + shift
    q, k, v = (
        getattr(attention, f"{part}_proj")(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for part in "qkv"
    )
    q, k = _turned(attention.q_norm(q), angles), _turned(attention.k_norm(k), angles)
    attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    x = x + gate * attention.o_proj(attended.transpose(1, 2).flatten(2))
    return x + gate2 * layer.feed(layer.post_attention_layernorm(x) * (1 + scale2) + shift2)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """(b, heads, r, d) by angles (r, d/2): the first half with the second."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def head_inv_freq(sizes: dict[str, int]) -> Tensor:
    """Of the head's rotary embedding, Llama 3's (d/2)."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    longest = int(HEAD_ROTARY["factor"]) * int(HEAD_ROTARY["original_max_position_embeddings"])
    config = LlamaConfig(
        hidden_size=sizes["head_heads"] * sizes["head_head_dim"],  # the head's own may be no multiple: it is projected
        num_attention_heads=sizes["head_heads"],
        head_dim=sizes["head_head_dim"],
        max_position_embeddings=longest,
        rope_parameters=dict(HEAD_ROTARY),
    )
    return LlamaRotaryEmbedding(config).inv_freq
