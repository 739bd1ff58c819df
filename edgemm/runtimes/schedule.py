"""The mathematics of drawing: times, noise, guidance, one step.  Pure functions; docs/bundle.md has the formulas.

Of x_t = (1 - s) x + s e (flow matching, arXiv:2210.02747), e the noise, s (sigma) goes from 1 to 0.  The model's own
time is 1 - s or s; it predicts x, the clean picture (arXiv:2511.13720), or dx/dt.  Solvers that remember steps are in
solvers.py.
Axes: n image tokens, p numbers in one; or c channels, h rows, w columns of latents.
"""

from __future__ import annotations

import numpy as np

from edgemm.bundle.denoise import DenoiseLoop

__all__ = [
    "guide",
    "initial_noise",
    "is_guided",
    "model_times",
    "noise_levels",
    "picture_noise",
    "renormed",
    "step",
    "times",
    "told",
]

RHO = 7.0  # of Karras' spacing
ALL_NOISE = 1e-6  # what UniPC stays away from a sigma of 1: its logarithm of 1 - sigma


def times(steps: int, shift: float) -> list[float]:
    """steps + 1 times from 0, the noise, to 1; shift > 1 spends more steps near the noise."""
    return [u / (u + shift * (1 - u)) for u in (k / steps for k in range(steps + 1))]


def noise_levels(steps: int, loop: DenoiseLoop) -> list[float]:
    """steps + 1 sigmas, falling to 0.

    Evenly spaced as diffusers does for the solver of that name, to the last bit: a whole time is cut from them.
    """
    first, last = loop.sigma_first, loop.sigma_last
    if loop.spacing == "karras":  # arXiv:2206.00364, equation 5, on s / (1 - s)
        low, high = last ** (1 / RHO), first ** (1 / RHO)
        wide = (high + np.linspace(0, 1, steps) * (low - high)) ** RHO
        return [*(wide / (wide + 1)).tolist(), 0.0]
    if loop.spacing == "linear_to_last":
        even = np.linspace(first, last, steps)
    elif loop.solver == "dpmsolver++_2m":  # counts from the picture: 1 - s is even
        even = (1 - np.linspace(1 - last, 1 - first, steps + 1))[::-1][:-1]
    else:
        even = np.linspace(first, last, steps + 1)[:-1]
    shifted = loop.shift * even / (1 + (loop.shift - 1) * even)  # arXiv:2403.03206, equation 23
    if loop.solver == "unipc_2" and abs(shifted[0] - 1) < ALL_NOISE:
        shifted[0] -= ALL_NOISE
    return [*shifted.tolist(), 0.0]


def model_times(steps: int, loop: DenoiseLoop) -> list[float]:
    """steps + 1 times as the model counts them, from the noise to the picture."""
    if loop.time_zero == "picture":
        return noise_levels(steps, loop)
    if (loop.spacing, loop.sigma_first, loop.sigma_last) == ("linear", 1.0, 0.0) and loop.solver != "unipc_2":
        return times(steps, loop.shift)
    return [1 - level for level in noise_levels(steps, loop)]


def told(time: float, loop: DenoiseLoop) -> float:
    """What the model hears of a time."""
    scaled = loop.time_scale * time
    return float(int(scaled)) if loop.time_whole else scaled


def initial_noise(seed: int, *shape: int) -> np.ndarray:
    """(n, p) or (c, h, w) float32; the same seed gives the same noise on every machine."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal(shape, dtype=np.float32)


def picture_noise(seed: int, *shape: int) -> np.ndarray:
    """Of the latents of a picture to edit: what comes in the seed's stream after the noise that is drawn from."""
    return initial_noise(seed, 2, *shape)[1]


def is_guided(time: float, guidance_scale: float, interval: tuple[float, float]) -> bool:
    """Whether this step needs the unconditional row too (arXiv:2404.07724)."""
    return guidance_scale != 1 and interval[0] <= time <= interval[1]


def guide(conditional: np.ndarray, unconditional: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Classifier-free guidance (arXiv:2207.12598) on predictions."""
    return unconditional + np.float32(guidance_scale) * (conditional - unconditional)


def renormed(guided: np.ndarray, conditional: np.ndarray, least: float, each: bool) -> np.ndarray:
    """No longer than the conditional prediction (BAGEL, arXiv:2505.14683, appendix on CFG-Renorm; arXiv:2305.08891).

    One factor for all, or with `each` one a token (n, p) or a place of the grid (c, h, w); none below `least`.
    """
    axis = None if not each else 0 if guided.ndim == 3 else -1
    wanted, found = (np.sqrt(np.square(x).sum(axis=axis, keepdims=True)) for x in (conditional, guided))
    return guided * np.clip(wanted / (found + np.float32(1e-8)), np.float32(least), np.float32(1))


def step(x: np.ndarray, clean: np.ndarray, time: float, next_time: float) -> np.ndarray:
    """One Euler step towards the predicted clean picture, time 0 being the noise; the last one arrives there."""
    if next_time >= 1:
        return clean
    return x + np.float32((next_time - time) / (1 - time)) * (clean - x)
