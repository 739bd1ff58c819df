"""BAGEL's weights as modules of the published names (arXiv:2505.14683): a Qwen2 with two of everything, and SigLIP.

A layer's `x` is for text and pictures that are read, its `x_moe_gen` for latents; one attention is over all.
Axes: b batch, s tokens, w width, h/g query and key/value heads, d head width, n latent tokens, m image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.families.flux_autoencoder import Autoencoder, AutoencoderSizes

__all__ = ["BagelModel", "BagelSizes", "GENERATION", "VisionTower"]

GENERATION = "_moe_gen"  # ends the names of what latents go through
TIME_FREQUENCIES = 256
VISION_EPSILON, VISION_ACT = 1e-6, "gelu_pytorch_tanh"  # of the class, where vit_config says nothing


@dataclass(frozen=True)
class BagelSizes:
    vocab: int
    width: int  # w
    hidden: int  # of an MLP
    depth: int
    heads: int  # h
    kv_heads: int  # g
    epsilon: float
    rope_theta: float
    vision_width: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    vision_patch: int  # pixels
    vision_side: int  # patches a side that the tables of positions know
    vision_epsilon: float
    vision_act: str
    latent_patch: int  # latents a side that make a token
    latent_side: int  # tokens a side that the table of positions knows
    autoencoder: AutoencoderSizes

    def __post_init__(self) -> None:
        for name, part, whole in (
            ("heads", self.heads, self.width),
            ("vision_heads", self.vision_heads, self.vision_width),
            ("kv_heads", self.kv_heads, self.heads),
        ):
            if part < 1 or whole % part:
                raise ValueError(f"{name} is {part}, which does not divide {whole}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def latent_width(self) -> int:
        """Numbers in a latent token: (row, column, channel)."""
        return self.latent_patch**2 * self.autoencoder.latent_channels

    @property
    def cell(self) -> int:
        """Pixels of a picture's side for one latent token."""
        return self.latent_patch * self.autoencoder.cell


class BagelModel(nn.Module):
    """All tensors of ema.safetensors, and those of ae.safetensors in `vae`."""

    def __init__(self, sizes: BagelSizes) -> None:
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.config: Any = None  # transformers', of the language model
        self.language_model: Any = nn.Module()
        self.language_model.model = TextModel(sizes)
        self.language_model.lm_head = nn.Linear(width, sizes.vocab, bias=False)
        self.vit_model: Any = nn.Module()
        self.vit_model.vision_model = VisionTower(sizes)
        self.connector: Any = nn.Module()
        self.connector.fc1, self.connector.fc2 = nn.Linear(sizes.vision_width, width), nn.Linear(width, width)
        self.vit_pos_embed = Table(sizes.vision_side**2, width)
        self.vae2llm, self.llm2vae = nn.Linear(sizes.latent_width, width), nn.Linear(width, sizes.latent_width)
        self.time_embedder = TimeEmbedder(width)
        self.latent_pos_embed = Table(sizes.latent_side**2, width)
        self.vae = Autoencoder(sizes.autoencoder)


class TextModel(nn.Module):
    """What llama.LlamaGraph looks for: embed_tokens, layers, norm, rotary_emb."""

    def __init__(self, sizes: BagelSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))
        self.norm, self.norm_moe_gen = (Norm(sizes.width, sizes.epsilon) for _ in range(2))
        half = torch.arange(0, sizes.head_width, 2, device="cpu").float() / sizes.head_width
        self.rotary_emb = SimpleNamespace(inv_freq=sizes.rope_theta**-half, attention_scaling=1.0)


class Layer(nn.Module):
    def __init__(self, sizes: BagelSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        for end in ("", GENERATION):
            self.add_module(f"mlp{end}", FeedForward(sizes.width, sizes.hidden))
            self.add_module(f"input_layernorm{end}", Norm(sizes.width, sizes.epsilon))
            self.add_module(f"post_attention_layernorm{end}", Norm(sizes.width, sizes.epsilon))


class Attention(nn.Module):
    def __init__(self, sizes: BagelSizes) -> None:
        super().__init__()
        self.head_dim = d = sizes.head_width
        for end in ("", GENERATION):
            self.add_module(f"q_proj{end}", nn.Linear(sizes.width, sizes.heads * d))
            self.add_module(f"k_proj{end}", nn.Linear(sizes.width, sizes.kv_heads * d))
            self.add_module(f"v_proj{end}", nn.Linear(sizes.width, sizes.kv_heads * d))
            self.add_module(f"o_proj{end}", nn.Linear(sizes.heads * d, sizes.width, bias=False))
            self.add_module(f"q_norm{end}", Norm(d, sizes.epsilon))
            self.add_module(f"k_norm{end}", Norm(d, sizes.epsilon))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.variance_epsilon)


class Table(nn.Module):
    """Embeddings of the places of a square, row by row."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(places, width))

    def forward(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, w) of the square's upper left."""
        return corner(self.pos_embed, rows, columns)


class TimeEmbedder(nn.Module):
    """t (b) in [0, 1], as it is, to (b, w): cosines, then sines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        half = TIME_FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        angles = time[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class VisionTower(nn.Module):
    """SigLIP without a pool: pixels (b, 3, H, W) in [-1, 1] to (b, m, vision width)."""

    def __init__(self, sizes: BagelSizes) -> None:
        super().__init__()
        self.patch, width = sizes.vision_patch, sizes.vision_width
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Linear(3 * self.patch**2, width)
        self.embeddings.position_embedding = nn.Embedding(sizes.vision_side**2, width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes.vision_depth))
        self.post_layernorm = nn.LayerNorm(width, eps=sizes.vision_epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        p, (height, width) = self.patch, pixels.shape[2:]
        rows, columns = height // p, width // p
        patches = pixels.unflatten(3, (columns, p)).unflatten(2, (rows, p))  # (b, 3, rows, p, columns, p)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (b, m, p p 3): row, column, channel
        embeddings: Any = self.embeddings
        places = corner(embeddings.position_embedding.weight, rows, columns)
        x = embeddings.patch_embedding(patches) + places
        for layer in self.encoder.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return self.post_layernorm(x)


class VisionLayer(nn.Module):
    def __init__(self, sizes: BagelSizes) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        width, self.heads = sizes.vision_width, sizes.vision_heads
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, nn.Linear(width, width))
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, sizes.vision_hidden), nn.Linear(sizes.vision_hidden, width)
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=sizes.vision_epsilon) for _ in range(2))
        self.act = ACT2FN[sizes.vision_act]

    def forward(self, x: Tensor) -> Tensor:
        attention: Any = self.self_attn
        mlp: Any = self.mlp
        normed = self.layer_norm1(x)
        queries, keys, values = (
            getattr(attention, f"{part}_proj")(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in "qkv"
        )
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        x = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + mlp.fc2(self.act(mlp.fc1(self.layer_norm2(x))))


def corner(table: Tensor, rows: int, columns: int) -> Tensor:
    """The upper left rows x columns places of a square's table (side * side, w), row by row."""
    side = math.isqrt(table.shape[0])
    return table.unflatten(0, (side, side))[:rows, :columns].flatten(0, 1)


def sizes_of(
    text: Mapping[str, Any], vision: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None
) -> BagelSizes:
    """Of llm_config.json, vit_config.json and the tensors' shapes; on paper (None), what the published code fixes."""
    autoencoder = AutoencoderSizes.read(shapes) if shapes else AutoencoderSizes()
    latent_side, vision_side, patch = 64, vision["image_size"] // vision["patch_size"], 2
    if shapes:
        latent_side = math.isqrt(shapes["latent_pos_embed.pos_embed"][0])
        vision_side = math.isqrt(shapes["vit_pos_embed.pos_embed"][0])
        patch = math.isqrt(shapes["vae2llm.weight"][1] // autoencoder.latent_channels)
    return BagelSizes(
        vocab=text["vocab_size"],
        width=text["hidden_size"],
        hidden=text["intermediate_size"],
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        epsilon=text["rms_norm_eps"],
        rope_theta=text["rope_theta"],
        vision_width=vision["hidden_size"],
        vision_hidden=vision["intermediate_size"],
        vision_depth=vision["num_hidden_layers"] - 1,  # one more than there is
        vision_heads=vision["num_attention_heads"],
        vision_patch=vision["patch_size"],
        vision_side=vision_side,
        vision_epsilon=vision.get("layer_norm_eps", VISION_EPSILON),
        vision_act=vision.get("hidden_act", VISION_ACT),
        latent_patch=patch,
        latent_side=latent_side,
        autoencoder=autoencoder,
    )
