"""The mathematics of drawing: times, noise, guidance, one step.  Pure functions; docs/bundle.md has the formulas.

Time runs from 0 (noise) to 1 (picture): x_t = t x + (1 - t) e (flow matching, arXiv:2210.02747).  The denoiser predicts
x, the clean tokens (arXiv:2511.13720).
Axes: n image tokens, p numbers in one token.
"""

from __future__ import annotations

import numpy as np

__all__ = ["guide", "initial_noise", "is_guided", "step", "times"]


def times(steps: int, shift: float) -> list[float]:
    """steps + 1 times from 0 to 1; shift > 1 spends more steps near the noise."""
    return [u / (u + shift * (1 - u)) for u in (k / steps for k in range(steps + 1))]


def initial_noise(seed: int, token_count: int, token_width: int) -> np.ndarray:
    """(n, p) float32; the same seed gives the same noise on every machine."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal((token_count, token_width), dtype=np.float32)


def is_guided(time: float, guidance_scale: float, interval: tuple[float, float]) -> bool:
    """Whether this step needs the unconditional row too (arXiv:2404.07724)."""
    return guidance_scale != 1 and interval[0] <= time <= interval[1]


def guide(conditional: np.ndarray, unconditional: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Classifier-free guidance (arXiv:2207.12598) on predictions of x."""
    return unconditional + np.float32(guidance_scale) * (conditional - unconditional)


def step(x: np.ndarray, clean: np.ndarray, time: float, next_time: float) -> np.ndarray:
    """One Euler step towards the predicted clean tokens; the last one arrives there."""
    if next_time >= 1:
        return clean
    return x + np.float32((next_time - time) / (1 - time)) * (clean - x)
