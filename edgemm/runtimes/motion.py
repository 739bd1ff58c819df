"""A drawing set in motion by plain arithmetic: what moves of it, and how.

A drawing on a plain ground is cut out of it, fills its square and moves over nothing; one that has no plain ground
moves whole, over the colour of its edge.  Every motion ends where it began, so that it loops, and stays in the square.
Axes: H, W of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgemm.bundle.files import pillow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOTIONS", "Pose", "cut_out", "in_motion", "pose_of"]

NEAR = 24  # of 255 in any channel: still the ground
SOLID = 64  # from here on an edge pixel is all drawing
PLAIN = 0.9  # share of the edge that has one colour where a ground is plain


def in_motion(rgb: np.ndarray, motion: str, count: int, side: int) -> list[Image]:
    """`count` frames of side x side pixels from a drawing uint8 (H, W, 3): RGBA where it was cut out, else RGB."""
    pil, sprite = pillow(), cut_out(rgb)
    whole = sprite or _squared(pil.fromarray(rgb).convert("RGBA"))
    scale = min(1.0, 0.495 / _radius(whole)) if motion == "spin" else 1.0
    whole = _enlarged(whole, side)
    if scale < 1:
        whole = _posed(whole, Pose(wide=scale, tall=scale))
    frames = [_posed(whole, pose_of(motion, index / count)) for index in range(count)]
    if sprite is not None:
        return frames
    ground = pil.new("RGBA", (side, side), (*(round(level) for level in np.median(_edge(rgb), axis=0)), 255))
    return [pil.alpha_composite(ground, frame).convert("RGB") for frame in frames]


def _enlarged(sprite: Image, side: int) -> Image:
    """Resized; the edge of a small drawing stays about two pixels wide, where a resize blurs it over many."""
    large, steeper = sprite.resize((side, side), pillow().Resampling.LANCZOS), side / sprite.width / 2
    if steeper > 1:
        levels = [min(255, max(0, round((alpha - 127.5) * steeper + 127.5))) for alpha in range(256)]
        large.putalpha(large.getchannel("A").point(levels))
    return large


# How it moves


@dataclass(frozen=True)
class Pose:
    """Where a drawing stands: moved by shares of the side, turned by degrees, scaled."""

    right: float = 0.0
    down: float = 0.0
    angle: float = 0.0  # clockwise
    wide: float = 1.0
    tall: float = 1.0


def _bounce(phase: float) -> Pose:
    height = 0.2 * 4 * phase * (1 - phase)  # a throw's parabola
    landed = max(0.0, 1 - height / 0.06)
    tall, wide = 0.76 * (1 - 0.14 * landed), 0.76 * (1 + 0.14 * landed)
    return Pose(down=0.49 - tall / 2 - height, wide=wide, tall=tall)


def _spin(phase: float) -> Pose:
    return Pose(angle=360 * phase)


def _pulse(phase: float) -> Pose:
    scale = 0.86 + 0.12 * math.cos(math.tau * phase)
    return Pose(wide=scale, tall=scale)


def _slide(phase: float) -> Pose:
    return Pose(right=0.14 * math.sin(math.tau * phase), wide=0.7, tall=0.7)


MOTIONS: dict[str, Callable[[float], Pose]] = {"bounce": _bounce, "spin": _spin, "pulse": _pulse, "slide": _slide}


def pose_of(motion: str, phase: float) -> Pose:
    """The pose at a phase from 0 to 1, at which it is the same again."""
    return MOTIONS[motion](phase % 1.0)


def _posed(sprite: Image, pose: Pose) -> Image:
    """A square drawing in its pose, of the same size; what it leaves free is transparent."""
    pil, middle = pillow(), sprite.width / 2
    cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    a, b, d, e = cos / pose.wide, sin / pose.wide, -sin / pose.tall, cos / pose.tall  # from the frame to the drawing
    x, y = middle + pose.right * sprite.width, middle + pose.down * sprite.width
    inverse = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)
    return sprite.transform(sprite.size, pil.Transform.AFFINE, inverse, pil.Resampling.BICUBIC)


# What moves: a drawing without its ground


def cut_out(rgb: np.ndarray) -> Image | None:
    """uint8 (H, W, 3) as a square RGBA picture of what stands on a plain ground, as large as it can be; None where the
    ground is not plain, or nothing stands on it.

    Ground is what is of its colour and hangs together with the edge, so white eyes on white paper stay.
    """
    edge = _edge(rgb)
    ground = np.median(edge, axis=0)
    if (np.abs(edge - ground).max(axis=1) <= NEAR).mean() < PLAIN:
        return None
    away = np.abs(rgb - ground).max(axis=2)  # (H, W)
    outside = _hanging_together(away <= NEAR)
    if outside.all():
        return None
    alpha = np.where(_grown(outside), (away / SOLID).clip(0, 1), 1.0)
    alpha[outside] = 0.0
    shown = np.maximum(alpha, 1e-3)[..., None]
    colours = ((rgb - (1 - shown) * ground) / shown).clip(
        0, 255
    )  # an edge pixel is half ground: that half is taken out
    whole = np.concatenate([colours, 255 * alpha[..., None]], axis=2)
    picture = pillow().fromarray(np.rint(whole).astype(np.uint8))
    return _squared(picture.crop(picture.getchannel("A").getbbox()))


def _edge(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.int64)


def _hanging_together(near: np.ndarray) -> np.ndarray:
    """What of a mask (H, W) hangs together with its edge: whole runs of rows, then of columns, until nothing is new."""
    reached = near.copy()
    reached[1:-1, 1:-1] = False
    while True:
        wider = _along_rows(_along_rows(reached, near).T, near.T).T
        if (wider == reached).all():
            return reached
        reached = wider


def _along_rows(reached: np.ndarray, near: np.ndarray) -> np.ndarray:
    runs = np.cumsum(~near, axis=1) + np.arange(len(near))[:, None] * (near.shape[1] + 1)
    hit = np.zeros(runs.max() + 1, dtype=bool)
    hit[runs[reached]] = True
    return near & hit[runs]


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels that touch it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def _squared(picture: Image) -> Image:
    side = max(picture.size)
    square = pillow().new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _radius(sprite: Image) -> float:
    """Of the circle around its middle that holds all of it, in sides."""
    rows, columns = np.nonzero(np.asarray(sprite)[..., 3])
    return (
        float(
            np.hypot(np.abs(rows + 0.5 - sprite.height / 2) + 0.5, np.abs(columns + 0.5 - sprite.width / 2) + 0.5).max()
        )
        / sprite.width
    )
