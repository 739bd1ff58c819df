"""How a picture becomes what an image encoder reads: the image processor's rule, split between runtime and graph.

The runtime resizes, crops or pads (edgemm/bundle/picture.py) and gives numbers in [0, 1]; scaling by mean and deviation
is the first node of the graph.  A bundle reads pictures of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.picture import seeded_picture
from edgemm.errors import CheckpointError

__all__ = ["Eye", "PictureRule", "example_pictures", "picture_rule"]

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class PictureRule:
    size: int  # side of the square
    fit: str
    resample: str
    background: tuple[int, int, int]
    scale: tuple[float, ...]  # a channel: number in the graph = scale * number in [0, 1] + shift
    shift: tuple[float, ...]


def picture_rule(processor: Any, folder: Any, pads: bool = False, size: int | None = None) -> PictureRule:
    """Of an image processor that makes squares; `pads` and `size` where its settings do not say so."""
    settings = processor.to_dict()
    mean, deviation = (settings.get(key) or [0.0] * 3 for key in ("image_mean", "image_std"))
    if not settings.get("do_normalize", True):
        mean, deviation = [0.0] * 3, [1.0] * 3
    factor = 255 * settings.get("rescale_factor", 1 / 255)
    background = tuple(int(value * 255) for value in mean) if pads else WHITE
    fit, side = ("pad" if pads else "stretch"), settings["size"]
    if settings.get("do_center_crop") and "shortest_edge" in side:
        fit, found = "crop", settings["crop_size"]
        if side["shortest_edge"] != found["height"]:
            raise CheckpointError(f"{folder}: pictures are resized to {side} and cut to {found}; expected one size")
    else:
        found = {"height": size, "width": size} if size else side
    if not found.get("height") or found["height"] != found.get("width"):
        raise CheckpointError(f"{folder}: pictures become {found}; this export reads squares")
    return PictureRule(
        int(found["height"] or 0),
        fit,
        FILTERS[int(settings.get("resample", 3))],
        background,  # type: ignore[arg-type]
        tuple(factor / d for d in deviation),
        tuple(-m / d for m, d in zip(mean, deviation)),
    )


class Eye(nn.Module):
    """Numbers in [0, 1] in, whatever `see` makes of the scaled picture out; `modules` are those it uses."""

    def __init__(self, rule: PictureRule, see: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.see, self.used = see, nn.ModuleList(modules)
        self.scale = nn.Buffer(torch.tensor(rule.scale)[:, None, None], persistent=False)
        self.shift = nn.Buffer(torch.tensor(rule.shift)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.see(pixels * self.scale + self.shift)


def example_pictures(size: int) -> Tensor:
    """(2, 3, size, size) in [0, 1]."""
    pictures = np.stack([seeded_picture(seed, size) for seed in range(2)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
