"""What the frozen eye sees of each training picture and of changed views of it, computed once and kept on disk.

A view is mirrored, turned, moved, scaled and tinted a little, so that another artist's hand looks less new.
Axes: b pictures, S side in pixels, v views, m squares of the grid, f features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgemm.config import VisionConfig
from edgemm.data.format import Sample
from edgemm.model.unified import Unified
from edgemm.train.recipe import Recipe

__all__ = ["changed_view", "eye_features", "features_key", "kept_features", "may_be_mirrored"]

CHUNK = 64
MIRROR_LIES_IN = ("symbols", "flags")  # groups whose pictures mean something else in a mirror
MIRROR_LIES_ABOUT = re.compile(r"left|right|clock|thirty")


def may_be_mirrored(sample: Sample) -> bool:
    """Whether the picture's label is true of its mirror image."""
    return sample.group not in MIRROR_LIES_IN and not MIRROR_LIES_ABOUT.search(sample.label)


@torch.no_grad()
def eye_features(model: Unified, pixels: Tensor, mirrored: Tensor, views: int, seed: int) -> Tensor:
    """Features (b, v, m, f), bfloat16, of pictures uint8 (b, 3, S, S): as they are, then views - 1 changed ones.

    mirrored (b) says which of them may be mirrored.
    """
    stacked, device = [], model.image_encoder.position.device
    for view in tqdm(range(views), "looking", unit="view", file=sys.stderr, disable=None):
        random = torch.Generator().manual_seed(seed * 1000 + view)
        seen = []
        for chunk, may in zip(pixels.split(CHUNK), mirrored.split(CHUNK), strict=True):
            shown = chunk.float() / 255
            shown = changed_view(shown, may, random) if view else shown
            seen.append(model.image_encoder.features(shown.to(device)).bfloat16().cpu())
        stacked.append(torch.cat(seen))
    return torch.stack(stacked, dim=1)


def changed_view(pixels: Tensor, may_mirror: Tensor, random: torch.Generator) -> Tensor:
    """pixels (b, 3, S, S) in [0, 1], each mirrored (half of those that may), turned, scaled, moved, tinted on white."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=random) * (high - low) + low

    mirror = (torch.rand(b, generator=random) < 0.5) & may_mirror
    pixels = torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)
    angle, scale = uniform(-0.25, 0.25), uniform(0.85, 1.25)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, uniform(-0.12, 0.12, 2)
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], 1)
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = 1 + nn.functional.grid_sample(pixels - 1, grid, align_corners=False)  # white outside
    gain, lift = uniform(0.75, 1.25, 3, 1, 1), uniform(-0.05, 0.05, 3, 1, 1)
    tinted = 1 - (1 - moved) * gain + lift * (moved < 0.98)
    grey = tinted.mean(dim=1, keepdim=True)
    return (grey + (tinted - grey) * uniform(0.3, 1.4, 1, 1, 1)).clamp(0, 1)


def features_key(recipe: Recipe, samples: Sequence[Sample], vision: VisionConfig) -> str:
    """What the features depend on, the weights of the released eye aside, as a hash."""
    eye = {name: dataclasses.asdict(vision)[name] for name in ("encoder", "image_size", "stride", "blocks")}
    pictures = [hashlib.sha256(Path(recipe.data, sample.image).read_bytes()).hexdigest() for sample in samples]
    document = [recipe.views, recipe.seed, eye, pictures]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def kept_features(path: Path, key: str, look: Callable[[], Tensor]) -> Tensor:
    """The features stored at `path` if they are those of `key`, else newly looked at and stored whole."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        with safe_open(path, "pt") as stored:
            if (stored.metadata() or {}).get("key") == key:
                return stored.get_tensor("features")
    except (OSError, SafetensorError):
        pass  # not there, or not whole: looked at again
    features = look()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({"features": features}, temporary, metadata={"key": key})
    temporary.replace(path)
    return features
