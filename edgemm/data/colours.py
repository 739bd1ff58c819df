"""The colour a drawing shows: the one that covers most of it, if it covers enough."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["ANCHORS", "dominant_colour", "lab"]

# One or more typical values a name, as sRGB; the nearest in Lab names a pixel.
ANCHORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((220, 40, 40), (250, 80, 70)),
    "orange": ((250, 130, 30), (240, 155, 60)),
    "yellow": ((250, 210, 50), (255, 235, 120)),
    "green": ((50, 150, 60), (120, 200, 80), (0, 210, 110)),
    "blue": ((30, 100, 210), (80, 170, 240), (60, 60, 180)),
    "purple": ((140, 80, 190), (170, 110, 230)),
    "pink": ((250, 130, 180), (255, 190, 215)),
    "brown": ((120, 75, 50), (150, 100, 70)),
    "black": ((20, 20, 20), (50, 50, 50)),
    "grey": ((128, 128, 128), (165, 165, 165)),
    "white": ((255, 255, 255), (230, 230, 230)),
}
SHARE = 0.5  # of the opaque pixels
OPAQUE = 200  # of 255: antialiased edges have no colour of their own


def dominant_colour(picture: Image.Image) -> str | None:
    """The name of the colour that more than half of an RGBA picture's opaque pixels have, or None."""
    pixels = np.asarray(picture, dtype=np.uint8).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] >= OPAQUE, :3]
    if not len(pixels):
        return None
    names = np.array([name for name, values in ANCHORS.items() for _ in values])
    anchors = lab(np.array([value for values in ANCHORS.values() for value in values]))  # (a, 3)
    distance = np.linalg.norm(lab(pixels)[:, None] - anchors[None], axis=-1)  # (p, a)
    found, counts = np.unique(names[distance.argmin(axis=1)], return_counts=True)
    return str(found[counts.argmax()]) if counts.max() > SHARE * len(pixels) else None


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (n, 3) in 0..255 to CIE L*a*b* under D65."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
