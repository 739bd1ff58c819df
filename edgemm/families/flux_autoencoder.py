"""FLUX's autoencoder in its published names: convolutions, one head of attention in the middle (arXiv:2112.10752).

Its sizes stand in no file and are read off the tensors' shapes.  The decoder is also every latent diffusion model's.
Axes: b pictures, c channels, z latent channels, H, W pixels, each 2**(levels - 1) for a row or column of latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Autoencoder", "AutoencoderSizes"]

GROUPS, EPSILON = 32, 1e-6  # of every GroupNorm
QUARTERS = 4


@dataclass(frozen=True)
class AutoencoderSizes:
    """The defaults are the published model's."""

    channels: int = 128  # of the first level
    multiples: tuple[int, ...] = (1, 2, 4, 4)  # of `channels`, a level
    blocks: int = 2  # of an encoder's level; a decoder's has one more
    latent_channels: int = 16  # z

    @classmethod
    def read(cls, shapes: Mapping[str, Sequence[int]]) -> AutoencoderSizes:
        """Of a file's shapes.  KeyError names the tensor that is missing."""
        channels, levels, blocks = shapes["encoder.conv_in.weight"][0], 0, 0
        while f"encoder.down.{levels}.block.0.conv1.weight" in shapes:
            levels += 1
        while f"encoder.down.0.block.{blocks}.conv1.weight" in shapes:
            blocks += 1
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        return cls(
            channels,
            tuple(width // channels for width in widths),
            blocks,
            shapes["decoder.conv_in.weight"][1],
        )

    @property
    def cell(self) -> int:
        """Pixels of a picture's side for one place of its latents."""
        return 2 ** (len(self.multiples) - 1)

    @property
    def widths(self) -> list[int]:
        return [self.channels * multiple for multiple in self.multiples]


class Autoencoder(nn.Module):
    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)


class Encoder(nn.Module):
    """Pixels (b, 3, H, W) in [-1, 1] to mean and logarithm of the variance, (b, 2 z, h, w)."""

    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        widths = sizes.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(zip([widths[0], *widths], widths)):
            part = nn.Module()
            part.block = _blocks(before, width, sizes.blocks)
            if level < len(widths) - 1:
                part.downsample = nn.Module()
                part.downsample.conv = nn.Conv2d(width, width, 3, stride=2)
            self.down.append(part)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * sizes.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for part in self.down:
            for block in part.block:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x)
            if hasattr(part, "downsample"):  # one column right and one row below
                x = part.downsample.conv(nn.functional.pad(x, (0, 1, 0, 1)))  # pyright: ignore
        return self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (b, z, h, w) to pixels (b, 3, H, W), around [-1, 1]."""

    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        widths = sizes.widths
        self.conv_in = nn.Conv2d(sizes.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for level, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            part = nn.Module()
            part.block = _blocks(before, width, sizes.blocks + 1)
            if level:
                part.upsample = nn.Module()
                part.upsample.conv = nn.Conv2d(width, width, 3, padding=1)
            self.up.append(part)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for part in reversed(self.up):
            for block in part.block:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x)
            if hasattr(part, "upsample"):
                x = part.upsample.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))  # pyright: ignore
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Residual(width, width), OneHead(width), Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Residual(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(nn.functional.silu(self.norm2(y)))


class OneHead(nn.Module):
    """Every place sees every place; 1x1 convolutions are its projections.

    A quarter of the places after the other: of 1024 pixels all scores at once would be a gigabyte.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        queries, keys, values = (part(normed).flatten(2) for part in (self.q, self.k, self.v))  # (b, c, h w)
        parts: list[Tensor] = []
        for some in queries.unflatten(2, (QUARTERS, -1)).unbind(2):  # both sides are even: latents of 2 x 2 a token
            scores = torch.matmul(some.transpose(1, 2), keys) * x.shape[1] ** -0.5  # (b, h w / 4, h w)
            parts.append(torch.matmul(values, scores.softmax(-1).transpose(1, 2)))
        return x + self.proj_out(torch.cat(parts, dim=2).view_as(x))


def _blocks(before: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Residual(before if index == 0 else width, width) for index in range(count))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)
