"""The ratio of two sides that were measured in several processes each, and what it may be off by.

Two starts of one program differ by more than its rounds do: memory is laid out anew, the machine is in another state.
So the process is the unit (Kalibera and Jones 2013, "Rigorous Benchmarking in Reasonable Time"): a process gives one
median, whose logarithm also holds the noise of its rounds, and Student's t says what the mean of so few may be off by.
Resampling n processes has a standard error in closed form, s / sqrt(n) sqrt((n - 1) / n), and its percentiles are too
narrow for the handful that anybody waits for (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.measure.student_t import quantile, two_sided_p

__all__ = ["Ratio", "median_interval", "ratio_of_medians"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    ratio: float
    low: float
    high: float
    p_value: float  # of a ratio so far from 1, were both sides the same


def ratio_of_medians(a: Sequence[float], b: Sequence[float], paired: bool) -> Ratio:
    """b over a from the medians of at least two processes a side; `paired` where the i-th of both ran side by side."""
    one, two = np.log(np.asarray(a)), np.log(np.asarray(b))
    if paired:
        differences = two - one
        mean, error, dof = float(differences.mean()), _error(differences), differences.size - 1.0
    else:
        mean, errors = float(two.mean() - one.mean()), (_error(one), _error(two))
        error, dof = math.hypot(*errors), _welch(errors, (one.size, two.size))
    if error == 0:
        return Ratio(math.exp(mean), math.exp(mean), math.exp(mean), 1.0 if mean == 0 else 0.0)
    reach = quantile(CONFIDENCE, dof) * error
    return Ratio(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), two_sided_p(mean / error, dof))


def median_interval(medians: Sequence[float]) -> tuple[float, float] | None:
    """Where the median of further processes lies on average; None from one, which cannot know."""
    if len(medians) < 2:
        return None
    logs = np.log(np.asarray(medians))
    reach = quantile(CONFIDENCE, logs.size - 1.0) * _error(logs)
    return math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)


def _error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def _welch(errors: tuple[float, float], counts: tuple[int, int]) -> float:
    """Degrees of freedom of two sides that spread differently."""
    parts = [error**4 / (count - 1) for error, count in zip(errors, counts)]
    return math.hypot(*errors) ** 4 / sum(parts) if sum(parts) else float(sum(counts) - 2)
