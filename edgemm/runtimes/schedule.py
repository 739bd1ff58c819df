"""The mathematics of drawing: times, noise, guidance, and the solvers.  Pure functions of arrays, and of sigmas.

docs/bundle.md has the formulas.

Of x_t = (1 - s) x + s e (flow matching, arXiv:2210.02747), e the noise, s (sigma) goes from 1 to 0.  The model's own
time is 1 - s or s; it predicts x, the clean picture (arXiv:2511.13720), or dx/dt.
Axes: n image tokens, p numbers in one; or c channels, h rows, w columns of latents.
"""

from __future__ import annotations

import math

import numpy as np

from edgemm.bundle.drawing import DenoiseLoop

__all__ = [
    "Trajectory",
    "dpm_first_order",
    "dpm_second_order",
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
    "unipc_corrected",
    "unipc_predicted",
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


def picture_noise(*shape: int) -> np.ndarray:
    """Of the latents of a picture to edit, whatever the seed: the pictures of one call share what it was read as, and
    each is what its own seed gives alone."""
    return initial_noise(0, 2, *shape)[1]  # behind what seed 0 draws from


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


# From noise to picture, step by step: Euler, DPM-Solver++ (2M) and UniPC, as one object that remembers what they need.
# All work on x_hat, the clean picture that is expected behind x, and on lambda = log((1 - sigma) / sigma), half the
# logarithm of the signal-to-noise ratio (arXiv:2206.00927, section 3).  Coefficients are plain numbers: float32 stays
# float32.


class Trajectory:
    """One picture on its way."""

    def __init__(self, steps: int, loop: DenoiseLoop) -> None:
        self.loop, self.steps, self.k = loop, steps, 0
        self.times = model_times(steps, loop)  # as the model counts them
        noise_first = loop.time_zero == "noise"
        self.sigmas = [1 - time if noise_first else time for time in self.times]
        self._before: np.ndarray | None = None  # x_hat of the step before
        self._older: np.ndarray | None = None  # x_hat of the step before that
        self._start: np.ndarray | None = None  # what the last UniPC step began with, corrected

    @property
    def now(self) -> float:
        return self.times[self.k]

    @property
    def later(self) -> float:
        """The model's time after the coming step."""
        return self.times[self.k + 1]

    @property
    def done(self) -> float:
        """How much of the way lies behind: 1 is the finished picture."""
        return self.now if self.loop.time_zero == "noise" else 1 - self.now

    def clean(self, x: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """The picture that is expected behind x."""
        if self.loop.prediction == "x":
            return prediction
        sigma = self.sigmas[self.k]  # x = x_hat + sigma (e - x_hat), and the velocity is e - x_hat or its opposite
        return x + (sigma if self.loop.time_zero == "noise" else -sigma) * prediction

    def step(self, x: np.ndarray, prediction: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """What comes after x, and the trajectory one step further."""
        solve = {"euler": self._euler, "dpmsolver++_2m": self._dpm, "unipc_2": self._unipc}[self.loop.solver]
        following = solve(x, prediction, clean)
        self._before, self.k = clean, self.k + 1
        return following

    def _euler(self, x: np.ndarray, prediction: np.ndarray, clean: np.ndarray) -> np.ndarray:
        if self.loop.prediction == "velocity":
            return x + (self.later - self.now) * prediction
        if self.loop.time_zero == "noise":
            return step(x, clean, self.now, self.later)
        return step(x, clean, 1 - self.now, 1 - self.later)

    def _dpm(self, x: np.ndarray, prediction: np.ndarray, clean: np.ndarray) -> np.ndarray:
        now, later = self.sigmas[self.k : self.k + 2]
        if self._before is None or later == 0:
            return dpm_first_order(x, clean, now, later)
        return dpm_second_order(x, clean, self._before, self.sigmas[self.k - 1], now, later)

    def _unipc(self, x: np.ndarray, prediction: np.ndarray, clean: np.ndarray) -> np.ndarray:
        now, later, before = self.sigmas[self.k], self.sigmas[self.k + 1], self._before
        if before is not None and self._start is not None:
            older = None if self._older is None else (self._older, self.sigmas[self.k - 2])
            x = unipc_corrected(self._start, clean, before, older, self.sigmas[self.k - 1], now)
        self._start, self._older = x, before
        if later == 0:
            return clean
        return unipc_predicted(x, clean, None if before is None else (before, self.sigmas[self.k - 1]), now, later)


def _lambda(sigma: float) -> float:
    if sigma in (0, 1):
        return math.inf if sigma == 0 else -math.inf
    return math.log(1 - sigma) - math.log(sigma)


def dpm_first_order(x: np.ndarray, clean: np.ndarray, now: float, later: float) -> np.ndarray:
    """DPM-Solver++ of order 1 (arXiv:2211.01095, equation 4.1 with one term); the last step arrives at `clean`."""
    if later == 0:
        return clean
    shrunk = math.expm1(_lambda(now) - _lambda(later))  # exp(-h) - 1
    return (later / now) * x - ((1 - later) * shrunk) * clean


def dpm_second_order(
    x: np.ndarray, clean: np.ndarray, clean_before: np.ndarray, before: float, now: float, later: float
) -> np.ndarray:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), on the sigmas of the step before, of now and of later."""
    h, h_before = _lambda(later) - _lambda(now), _lambda(now) - _lambda(before)
    slope = 0.5 * (1 - later) * math.expm1(-h) * h / h_before
    return dpm_first_order(x, clean, now, later) - slope * (clean - clean_before)


Older = tuple[np.ndarray, float]  # x_hat of an earlier step, and its sigma


def unipc_predicted(x: np.ndarray, clean: np.ndarray, before: Older | None, now: float, later: float) -> np.ndarray:
    """UniP of order 1, or 2 with the step before (arXiv:2302.04867, algorithm 6, B(h) = exp(h) - 1).

    Order 2 takes the paper's simplified coefficient 1/2, which makes it DPM-Solver++(2M).
    """
    if before is None:
        return dpm_first_order(x, clean, now, later)
    return dpm_second_order(x, clean, before[0], before[1], now, later)


def unipc_corrected(
    start: np.ndarray, clean: np.ndarray, clean_before: np.ndarray, older: Older | None, before: float, now: float
) -> np.ndarray:
    """UniC (arXiv:2302.04867, algorithm 5) of order 1, or 2 with an older step: what x should have been now.

    `start` is x at sigma `before`; `clean` is what the model expects at the predicted x of sigma `now`.
    """
    h = _lambda(now) - _lambda(before)
    b_h = math.expm1(-h)
    base = (now / before) * start - ((1 - now) * b_h) * clean_before
    if older is None:
        return base - ((1 - now) * b_h * 0.5) * (clean - clean_before)
    # Two unknown weights of the differences: sum = phi_1 / B, sum of ratios x weights = 2 phi_2 / B (equation 10).
    phi_1 = b_h / -h - 1
    phi_2 = phi_1 / -h - 0.5
    ratio = (_lambda(older[1]) - _lambda(before)) / h
    weights = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi_1 / b_h, 2 * phi_2 / b_h])
    slopes = float(weights[0] / ratio) * (older[0] - clean_before) + float(weights[1]) * (clean - clean_before)
    return base - ((1 - now) * b_h) * slopes
