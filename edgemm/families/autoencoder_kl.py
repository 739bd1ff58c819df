"""The decoder of diffusers' AutoencoderKL (latent diffusion, arXiv:2112.10752), around its published tensors.

Only what turns latents into pixels: the encoder is never used for drawing from words.
Axes: b batch, c channels, h rows, w columns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.errors import CheckpointError
from edgemm.families.own_modules import fill, from_sizes, names_and_shapes, read_config

__all__ = ["WHAT", "AutoencoderKL", "autoencoder_skeleton", "open_autoencoder"]

WHAT = "an AutoencoderKL in the layout of diffusers (config.json, diffusion_pytorch_model.safetensors)"
WEIGHTS = "diffusion_pytorch_model.safetensors"
EPSILON = 1e-6  # of every norm of this class


class Resnet(nn.Module):
    def __init__(self, wide: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, width, EPSILON) for width in (wide, out))
        self.conv1, self.conv2 = nn.Conv2d(wide, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(wide, out, 1) if wide != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        y = self.conv2(nn.functional.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (b, h w, c)
        scores = self.to_q(rows) @ self.to_k(rows).transpose(1, 2) * rows.shape[-1] ** -0.5
        attended = self.to_out[0](scores.softmax(-1) @ self.to_v(rows))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class Middle(nn.Module):
    def __init__(self, width: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(width, groups)] if attends else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Up(nn.Module):
    def __init__(self, wide: int, out: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(out if i else wide, out, groups) for i in range(count)])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out)])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class Decoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        groups, widths = config["norm_num_groups"], config["block_out_channels"][::-1]
        count = config["layers_per_block"] + 1
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, config.get("mid_block_add_attention", True))
        wide, blocks = [widths[0], *widths], range(len(widths))
        self.up_blocks = nn.ModuleList(
            [Up(wide[i], widths[i], count, groups, last=i + 1 == len(widths)) for i in blocks]
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config["out_channels"], 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.channels, self.cell = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
        self.scale, self.shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)
        if not (math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise ValueError(f"scaling_factor {self.scale}, shift_factor {self.shift}")
        uses = config.get("use_post_quant_conv", True)
        self.post_quant_conv = nn.Conv2d(self.channels, self.channels, 1) if uses else nn.Identity()
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) as they are denoised -> pixels (b, 3, H, W) around [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents / self.scale + self.shift))


def autoencoder_skeleton(folder: Path) -> AutoencoderKL:
    config = read_config(folder / "config.json", WHAT)
    blocks = config.get("up_block_types") or []
    odd = [kind for kind in blocks if kind != "UpDecoderBlock2D"]
    if config.get("act_fn", "silu") != "silu" or odd or config.get("latents_mean") or config.get("latents_std"):
        raise CheckpointError(f"{folder}: an autoencoder of another make, expected {WHAT} of plain blocks and SiLU")
    return from_sizes(lambda: AutoencoderKL(config), folder)


@torch.no_grad()
def open_autoencoder(folder: Path) -> AutoencoderKL:
    """float32, from `folder` alone."""
    model, file = autoencoder_skeleton(folder), folder / WEIGHTS
    fill(model, folder, dict.fromkeys(names_and_shapes(file, WHAT), file))
    return model.eval()
