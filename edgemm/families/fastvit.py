"""FastViTHD, the picture encoder of FastVLM (arXiv:2412.13303), in its published names, folded for inference.

Its last feature map is read, row by row.  Every convolution pads half its kernel, every GELU is exact.
Axes: b pictures, c channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FastViT", "FastViTSizes"]

HEAD_WIDTH = 32  # of attention
EPSILON = 1e-5  # of every norm
STRIDE = 64  # pixels of a side for one place of the last map


@dataclass(frozen=True)
class FastViTSizes:
    """The defaults are the published model's, which it calls mobileclip_l."""

    blocks: tuple[int, ...] = (2, 12, 24, 4, 2)  # of a stage; the last two stages are attention
    widths: tuple[int, ...] = (96, 192, 384, 768, 1536)
    hidden: int = 4  # times the width, of a convffn
    out_width: int = 3072
    gate_width: int = 192

    @classmethod
    def read(cls, shapes: Mapping[str, Sequence[int]], prefix: str) -> FastViTSizes:
        """Of a file's shapes.  KeyError names the tensor that is missing."""
        blocks: list[int] = []
        widths: list[int] = []
        hidden, part = 0, 0
        while any(name.startswith(f"{prefix}network.{part}.") for name in shapes):
            count = 0
            while f"{prefix}network.{part}.{count}.convffn.fc1.weight" in shapes:
                count += 1
            if count:
                inner, width, *_ = shapes[f"{prefix}network.{part}.0.convffn.fc1.weight"]
                blocks.append(count)
                widths.append(width)
                hidden = inner // width
            part += 1
        gate, out, *_ = shapes[f"{prefix}conv_exp.se.reduce.weight"]
        return cls(tuple(blocks), tuple(widths), hidden, out, gate)


class FastViT(nn.Module):
    """Pixels (b, 3, H, W) to features (b, H/64 * W/64, out width)."""

    def __init__(self, sizes: FastViTSizes) -> None:
        super().__init__()
        first = sizes.widths[0]
        self.patch_embed = nn.Sequential(
            Convolution(3, first, 3, stride=2),
            Convolution(first, first, 3, stride=2, groups=first),
            Convolution(first, first, 1),
        )
        parts: list[nn.Module] = []
        attentive = len(sizes.blocks) - 2
        for stage, (count, (before, width)) in enumerate(zip(sizes.blocks, pairwise([0, *sizes.widths]))):
            if stage:
                parts.append(Downsampling(before, width))
            if stage >= attentive:
                parts.append(Convolution(width, width, 7, groups=width, acts=False))
            block = AttentionBlock if stage >= attentive else ConvolutionBlock
            parts.append(nn.Sequential(*(block(width, sizes.hidden) for _ in range(count))))
        self.network = nn.Sequential(*parts)
        self.conv_exp = Expansion(sizes.widths[-1], sizes.out_width, sizes.gate_width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv_exp(self.network(self.patch_embed(pixels))).flatten(2).transpose(1, 2)


class Convolution(nn.Module):
    """All branches folded into one, then perhaps GELU."""

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1, acts: bool = True):
        super().__init__()
        self.reparam_conv, self.acts = _conv(before, width, kernel, stride, groups), acts

    def forward(self, x: Tensor) -> Tensor:
        x = self.reparam_conv(x)
        return nn.functional.gelu(x) if self.acts else x


class Downsampling(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        large = nn.Module()
        large.lkb_reparam = _conv(before, width, 7, 2, before)
        self.proj = nn.ModuleList([large, Convolution(width, width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        large: Any = self.proj[0]
        return self.proj[1](nn.functional.gelu(large.lkb_reparam(x)))


class ConvolutionBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.token_mixer = Convolution(width, width, 3, groups=width, acts=False)
        self.convffn = FeedForward(width, hidden)
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)


class AttentionBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.token_mixer = Attention(width)
        self.convffn = FeedForward(width, hidden)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.ones(width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.flatten(2).transpose(1, 2))  # (b, H W, c), over channels
        x = x + self.layer_scale_1 * self.token_mixer(normed).transpose(1, 2).view_as(x)
        return x + self.layer_scale_2 * self.convffn(x)


class Attention(nn.Module):
    """Every place sees every place; no positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = nn.Conv2d(width, width, 7, padding=3, groups=width, bias=False)
        self.conv.bn = nn.BatchNorm2d(width, eps=EPSILON)
        self.fc1, self.fc2 = nn.Conv2d(width, hidden * width, 1), nn.Conv2d(hidden * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        return self.fc2(nn.functional.gelu(self.fc1(conv.bn(conv.conv(x)))))


class Expansion(nn.Module):
    """To the last width, each channel gated by what all places say together."""

    def __init__(self, before: int, width: int, gate: int) -> None:
        super().__init__()
        self.reparam_conv = _conv(before, width, 3, 1, before)
        self.se = nn.Module()
        self.se.reduce, self.se.expand = nn.Conv2d(width, gate, 1), nn.Conv2d(gate, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.reparam_conv(x), self.se
        heard: Any = gate.expand(nn.functional.relu(gate.reduce(x.mean((2, 3), keepdim=True))))  # pyright: ignore
        return nn.functional.gelu(x * heard.sigmoid())


def _conv(before: int, width: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, kernel, stride, kernel // 2, groups=groups)
