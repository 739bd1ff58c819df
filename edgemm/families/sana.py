"""SANA (arXiv:2410.10629) over hidden states of a language model, cut in two: what a prompt needs once, and each step.

Around diffusers' modules, which hold the published tensors.  Mobile-O's connector mixes the last layers' hidden states
and makes captions of them; the conditioner goes on to the keys and values of every block's cross-attention, since no
step changes them.
Axes: b batch, t prompt slots, w width of the language model, c caption width, h/d heads and their width, H, W latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Connector", "ConnectorSizes", "LatentDecoder", "SanaConditioner", "SanaDenoiser"]

KERNEL = 3  # of the convolution over tokens


@dataclass(frozen=True)
class ConnectorSizes:
    """The defaults are Mobile-O's."""

    layers: int  # whose hidden states are mixed
    text_width: int
    width: int = 512
    refiners: int = 2
    gate_width: int = 128
    caption_width: int = 2304

    @classmethod
    def read(cls, shapes: Mapping[str, Sequence[int]], prefix: str) -> ConnectorSizes:
        """Of a file's shapes.  KeyError names the tensor that is missing."""
        width, text_width = shapes[f"{prefix}input_compress.0.weight"]
        refiners = 0
        while f"{prefix}sequence_refiners.{refiners}.norm.weight" in shapes:
            refiners += 1
        return cls(
            shapes[f"{prefix}layer_weights"][0],
            text_width,
            width,
            refiners,
            shapes[f"{prefix}sequence_refiners.0.channel_attn.fc.0.weight"][0],
            shapes[f"{prefix}output_proj.0.weight"][0],
        )


class Connector(nn.Module):
    """Hidden states, one (b, t, w) a layer, to captions (b, t, c).  `mask` (b, t, 1) is 1 on slots in use."""

    def __init__(self, sizes: ConnectorSizes) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(sizes.layers))
        self.temperature = nn.Parameter(torch.ones(()))
        self.input_compress = nn.Sequential(
            nn.Linear(sizes.text_width, sizes.width), nn.LayerNorm(sizes.width), nn.Hardswish()
        )
        self.sequence_refiners = nn.ModuleList(Refiner(sizes) for _ in range(sizes.refiners))
        self.output_proj = nn.Sequential(nn.Linear(sizes.width, sizes.caption_width), nn.LayerNorm(sizes.caption_width))

    def forward(self, hidden: Sequence[Tensor], mask: Tensor) -> Tensor:
        weights = (self.layer_weights / self.temperature).softmax(0)
        x = self.input_compress(sum(weight * layer for weight, layer in zip(weights, hidden)))
        for refiner in self.sequence_refiners:
            x = refiner(x, mask)
        return self.output_proj(x)


class Refiner(nn.Module):
    def __init__(self, sizes: ConnectorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.conv = nn.Module()
        self.conv.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width, bias=False)
        self.conv.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.conv.norm = nn.LayerNorm(width)
        gate = nn.Sequential(
            nn.Linear(width, sizes.gate_width, bias=False),
            nn.Hardswish(),
            nn.Linear(sizes.gate_width, width, bias=False),
            nn.Hardsigmoid(),
        )
        self.channel_attn = nn.ModuleDict({"fc": gate})
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        conv: Any = self.conv
        y = conv.pointwise(conv.depthwise((x * mask).transpose(1, 2))).transpose(1, 2)  # zeros outside the prompt
        y = nn.functional.hardswish(conv.norm(y))
        mean = (y * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.norm(x + y * self.channel_attn["fc"](mean))


class SanaConditioner(nn.Module):
    """Hidden states (b, 1, T, w) a layer to keys and values (b, h, T, d) a block; all of the template is read."""

    def __init__(self, connector: Connector, dit: Any) -> None:
        super().__init__()
        self.connector, self.projection, self.norm = connector, dit.caption_projection, dit.caption_norm
        self.attentions = nn.ModuleList(block.attn2 for block in dit.transformer_blocks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *hidden, prefix_length = tensors
        mask = torch.arange(hidden[0].shape[2]) < prefix_length[:, None]  # (b, T)
        captions = self.connector([layer[:, 0] for layer in hidden], mask[..., None].float())
        read = self.norm(self.projection(captions))
        pairs: list[Tensor] = []
        for attention in self.attentions:
            for project in (attention.to_k, attention.to_v):
                pairs.append(project(read).unflatten(-1, (attention.heads, -1)).transpose(1, 2))  # pyright: ignore
        return mask, *pairs


class SanaDenoiser(nn.Module):
    """Latents (b, c, H, W) at a time to their velocity, over what the conditioner made of the prompt."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.dit = nn.Module()  # without what the conditioner has
        for name in ("patch_embed", "time_embed", "norm_out", "proj_out"):
            self.dit.add_module(name, getattr(dit, name))
        self.blocks, self.table = dit.transformer_blocks, dit.scale_shift_table
        self.patch = dit.config.patch_size

    def forward(self, latents: Tensor, time: Tensor, prefix_mask: Tensor, *pairs: Tensor) -> Tensor:
        dit: Any = self.dit
        b, _, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        x = dit.patch_embed(latents)  # (b, rows columns, w)
        modulation, embedded = dit.time_embed(time, batch_size=b, hidden_dtype=x.dtype)
        mask = prefix_mask[:, None, None].expand(-1, -1, x.shape[1], -1)
        for block, *pair in zip(self.blocks, pairs[::2], pairs[1::2], strict=True):
            parts = (block.scale_shift_table[None] + modulation.unflatten(1, (6, -1))).chunk(6, dim=1)
            x = self._block(block, x, parts, (mask, *pair), (rows, columns))
        x = dit.proj_out(dit.norm_out(x, embedded, self.table))
        x = x.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (rows, columns))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    @staticmethod
    def _block(
        block: Any, x: Tensor, parts: Sequence[Tensor], prefix: Sequence[Tensor], grid: tuple[int, int]
    ) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        mask, keys, values = prefix
        x = x + gate * _mixed(block.attn1, block.norm1(x) * (1 + scale) + shift)
        queries = block.attn2.to_q(x).unflatten(-1, (block.attn2.heads, -1)).transpose(1, 2)
        attended = torch.onnx.ops.attention(queries, keys, values, mask)[0]
        x = x + block.attn2.to_out[0](attended.transpose(1, 2).flatten(2))
        normed = block.norm2(x) * (1 + mlp_scale) + mlp_shift
        fed = block.ff(normed.transpose(1, 2).unflatten(2, grid))
        return x + mlp_gate * fed.flatten(2).transpose(1, 2)


def _mixed(attention: Any, x: Tensor) -> Tensor:
    """Linear attention of places (b, n, w) to one another."""
    parts = (project(x).transpose(1, 2) for project in (attention.to_q, attention.to_k, attention.to_v))
    queries, keys, values = (part.unflatten(1, (attention.heads, -1)) for part in parts)  # (b, h, d, n)
    mixed = linear_attention(queries.relu(), keys.relu(), values)
    return attention.to_out[0](mixed.flatten(1, 2).transpose(1, 2))


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(b, h, d, n) of numbers that are not negative.

    A query that meets no key gives 0.  The library adds 1e-15 instead, which float16 does not hold and the exporter
    takes for nothing.
    """
    both = nn.functional.pad(values, (0, 0, 0, 1), value=1.0) @ keys.transpose(2, 3) @ queries
    return both[:, :, :-1] / _not_zero(both[:, :, -1:])


def quadratic_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same numbers, for maps with fewer places than a head is wide."""
    scores = keys.transpose(2, 3) @ queries
    return values @ (scores / _not_zero(scores.sum(2, keepdim=True)))


def _not_zero(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, sums, 1.0)


class LatentDecoder(nn.Module):
    """Latents (b, c, H, W) to pixels (b, 3, H', W'), around [0, 1], by DC-AE's decoder (arXiv:2410.10733)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.scale = vae.decoder, float(vae.config.scaling_factor)
        for module in self.decoder.modules():
            if hasattr(module, "apply_linear_attention"):
                module.apply_linear_attention, module.apply_quadratic_attention = linear_attention, quadratic_attention

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(latents / self.scale) / 2 + 0.5
