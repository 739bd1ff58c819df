"""Pictures of smooth colours, from a seed."""

from __future__ import annotations

import numpy as np

__all__ = ["picture"]


def picture(seed: int, width: int = 40, height: int = 40) -> np.ndarray:
    """uint8 (height, width, 3): smooth colours, as photographs have."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * a + y * b + c) for a, b, c in generator.uniform(1, 6, (3, 3))]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
