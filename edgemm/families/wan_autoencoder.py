"""Wan 2.1's video autoencoder (arXiv:2503.20314) for pictures: one frame, so a network in two dimensions.

Every convolution of 3 x 3 x 3 is causal in time and sees zeros before the first frame: of its three taps in time only
the last one meets a picture, and only that one is kept.  What halves and doubles time is never run.  All sizes are read
off the tensors' shapes; the names are the published file's.
Axes: b batch, z latent channels, c channels, h rows, w columns (of latents; pixels have `cell` times as many).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm.errors import CheckpointError
from edgemm.families.hf_checkpoint import no_weights
from edgemm.families.own_modules import fill, from_sizes, names_and_shapes, starting

__all__ = [
    "LATENT_MEAN",
    "LATENT_STD",
    "WHAT",
    "Attention",
    "Doubled",
    "Norm",
    "Shapes",
    "WanAutoencoder",
    "convolution",
    "of_a_picture",
    "open_wan",
    "wan_skeleton",
]

WHAT = "Wan 2.1's autoencoder, Wan2.1_VAE.pth converted to safetensors"
# Of each latent channel, as the published code says them
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip
LEAST = 1e-12  # of a norm that is divided by

Shapes = dict[str, tuple[int, ...]]


class Norm(nn.Module):
    """Each place of (b, c, h, w) divided by the root of its channels' mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().mean(dim=1, keepdim=True).sqrt().clamp(min=LEAST)
        return x / size * self.gamma[:, None, None]


def convolution(shapes: Shapes, name: str) -> nn.Conv2d:
    """As large as the file has it, over a picture's two dimensions."""
    out, into, *_, size = shapes[f"{name}.weight"]
    return nn.Conv2d(into, out, size, padding=size // 2)


class Residual(nn.Module):
    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        first, second = (convolution(shapes, f"{name}.residual.{n}") for n in (2, 6))
        self.residual = nn.Sequential(
            Norm(first.in_channels), nn.SiLU(), first, Norm(second.in_channels), nn.SiLU(), nn.Identity(), second
        )
        short = f"{name}.shortcut"
        self.shortcut = convolution(shapes, short) if f"{short}.weight" in shapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.to_qkv, self.proj = (convolution(shapes, f"{name}.{part}") for part in ("to_qkv", "proj"))
        self.norm = Norm(self.to_qkv.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        seen = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # (b, h w, c)
        return x + self.proj(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


class Halved(nn.Module):
    """A column right and a row below are added, nothing on the other sides."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        out, into, *_, size = shapes[f"{name}.resample.1.weight"]
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(into, out, size, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Doubled(nn.Module):
    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), convolution(shapes, f"{name}.resample.1"))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Half(nn.Module):
    """The encoder or the decoder: its first convolution, the stages, the middle and the head, in that half's order."""

    def __init__(self, shapes: Shapes, half: str) -> None:
        super().__init__()
        self.conv1 = convolution(shapes, f"{half}.conv1")
        stages, resampled = ("downsamples", Halved) if half == "encoder" else ("upsamples", Doubled)
        self.middle_first = half == "decoder"
        made: list[nn.Module] = []
        while any(name.startswith(f"{half}.{stages}.{len(made)}.") for name in shapes):
            name = f"{half}.{stages}.{len(made)}"
            made.append((resampled if f"{name}.resample.1.weight" in shapes else Residual)(shapes, name))
        setattr(self, stages, nn.Sequential(*made))
        self.stages = stages
        middle = f"{half}.middle"
        self.middle = nn.Sequential(
            Residual(shapes, f"{middle}.0"), Attention(shapes, f"{middle}.1"), Residual(shapes, f"{middle}.2")
        )
        last = convolution(shapes, f"{half}.head.2")
        self.head = nn.Sequential(Norm(last.in_channels), nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        stages = getattr(self, self.stages)
        return self.head(stages(self.middle(x)) if self.middle_first else self.middle(stages(x)))


class WanAutoencoder(nn.Module):
    """Pixels (b, 3, H, W) in [-1, 1] to latents' means and variances' logarithms (b, z, h, w), and back."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.encoder, self.decoder = Half(shapes, "encoder"), Half(shapes, "decoder")
        self.conv1, self.conv2 = convolution(shapes, "conv1"), convolution(shapes, "conv2")
        self.channels = self.conv2.in_channels
        self.cell = 2 ** sum(isinstance(module, Doubled) for module in self.decoder.modules())

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logarithm = self.conv1(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logarithm

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.conv2(latents))


def wan_skeleton(folder: Path) -> WanAutoencoder:
    """Of the one file that has a decoder in it, from its header alone."""
    return _skeleton(folder)[0]


def _skeleton(folder: Path) -> tuple[WanAutoencoder, Path, Shapes]:
    for path in sorted(folder.glob("*.safetensors")):
        shapes = names_and_shapes(path, "Wan's autoencoder")
        if {"decoder.conv1.weight", "encoder.conv1.weight", "conv1.weight", "conv2.weight"} <= shapes.keys():
            return from_sizes(lambda shapes=shapes: WanAutoencoder(shapes), folder), path, shapes
    if not any(folder.glob("*.safetensors")):
        raise no_weights(folder)
    raise CheckpointError(f"{folder}: no file with an autoencoder's tensors, expected {WHAT}")


def open_wan(folder: Path) -> WanAutoencoder:
    model, path, shapes = _skeleton(folder)
    fill(model, folder, starting(shapes, path), shaped=of_a_picture)
    if model.channels != len(LATENT_MEAN):
        raise CheckpointError(
            f"{folder}: latents of {model.channels} channels; Wan 2.1's have {len(LATENT_MEAN)}, whose means are known"
        )
    return model.eval()


def of_a_picture(tensor: Tensor) -> Tensor:
    """The last tap in time of a convolution; a gamma without its axes of one."""
    if tensor.shape[1:].numel() == 1 and tensor.ndim in (3, 4):
        return tensor.flatten()
    return tensor[:, :, -1] if tensor.ndim == 5 else tensor
