"""From noise to picture, step by step: Euler, DPM-Solver++ (2M) and UniPC, as one object that remembers what they need.

The updates are pure functions of arrays and of sigmas, the shares of noise: 1 - sigma of the picture is left.  All work
on x_hat, the clean picture that is expected behind x, and on lambda = log((1 - sigma) / sigma), half the logarithm of
the signal-to-noise ratio (arXiv:2206.00927, section 3).  Coefficients are plain numbers, so float32 stays float32.
"""

from __future__ import annotations

import math

import numpy as np

from edgemm.bundle.denoise import DenoiseLoop
from edgemm.runtimes import schedule

__all__ = ["Trajectory", "dpm_first_order", "dpm_second_order", "unipc_corrected", "unipc_predicted"]


class Trajectory:
    """One picture on its way."""

    def __init__(self, steps: int, loop: DenoiseLoop) -> None:
        self.loop, self.steps, self.k = loop, steps, 0
        self.times = schedule.model_times(steps, loop)  # as the model counts them
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
            return schedule.step(x, clean, self.now, self.later)
        return schedule.step(x, clean, 1 - self.now, 1 - self.later)

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
