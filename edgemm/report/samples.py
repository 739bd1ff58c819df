"""Numbers measured more than once, boiled down without hiding how far they spread.

Pure functions over lists of floats; it knows no clock and no model.  A percentile that the samples cannot carry is
None, never a guess: nothing is said about the slowest hundredth from fewer than a hundred samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = [
    "Summary",
    "drift",
    "summarise",
    "warnings_about",
    "Ratio",
    "median_interval",
    "ratio_of_medians",
    "quantile",
    "two_sided_p",
]

SAMPLES_FOR_P99 = 100
UNSTABLE_VARIANCE = 0.025  # trtexec warns above the same coefficient of variance
SAMPLES_FOR_VARIANCE = 3
DRIFT = 0.05  # the last third may differ from the first by this much
SAMPLES_FOR_DRIFT = 6


@dataclass(frozen=True)
class Summary:
    """All values in the samples' own unit.  p90 is what nine of ten runs reach or beat: a slow time, a low rate."""

    count: int
    mean: float
    sd: float | None  # of the sample (n - 1); None from one value
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float | None  # None below SAMPLES_FOR_P99
    maximum: float

    @property
    def coefficient_of_variance(self) -> float | None:
        return self.sd / self.mean if self.sd is not None and self.mean else None


def summarise(values: Sequence[float], more_is_better: bool = False) -> Summary | None:
    """None when nothing was measured; `more_is_better` for rates, whose bad end is the low one."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=np.float64)  # (n,)
    p50, p90, p95, p99 = np.percentile(array, [50, 10, 5, 1] if more_is_better else [50, 90, 95, 99])
    return Summary(
        count=array.size,
        mean=float(array.mean()),
        sd=float(array.std(ddof=1)) if array.size > 1 else None,
        minimum=float(array.min()),
        p50=float(p50),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99) if array.size >= SAMPLES_FOR_P99 else None,
        maximum=float(array.max()),
    )


def drift(values: Sequence[float]) -> float | None:
    """Median of the last third over median of the first, in order of measurement; 1.0 is steady, None is too few."""
    if len(values) < SAMPLES_FOR_DRIFT:
        return None
    third = len(values) // 3
    first, last = np.median(values[:third]), np.median(values[-third:])
    return float(last / first) if first else None


def warnings_about(samples: Mapping[str, Sequence[float]]) -> list[str]:
    """What a reader has to know before quoting a number of these rows: at most one line a kind of trouble."""
    unstable, drifting = [], []
    for name, values in samples.items():
        summary, moved = summarise(values), drift(values)
        spread = summary.coefficient_of_variance if summary and summary.count >= SAMPLES_FOR_VARIANCE else None
        if spread is not None and spread > UNSTABLE_VARIANCE:
            unstable.append(f"{name} {spread:.1%}")
        if moved is not None and abs(moved - 1) > DRIFT:
            drifting.append(f"{name} {moved:.2f}")
    found = []
    if unstable:
        found.append(
            f"unstable, coefficient of variance above {UNSTABLE_VARIANCE:.1%}: {', '.join(unstable)}; "
            "lock clocks, stop other work, or take more runs"
        )
    if drifting:
        found.append(
            f"drift, last third over first: {', '.join(drifting)}; heat, clocks or other work changed meanwhile"
        )
    return found


# The ratio of two sides that were measured in several processes each, and what it may be off by.
#
# Two starts of one program differ by more than its rounds do: memory is laid out anew, the machine is in another state.
# So the process is the unit (Kalibera and Jones 2013, "Rigorous Benchmarking in Reasonable Time"): a process gives one
# median, whose logarithm also holds the noise of its rounds, and Student's t says what the mean of so few may be off
# by.
# Resampling n processes has a standard error in closed form, s / sqrt(n) sqrt((n - 1) / n), and its percentiles are too
# narrow for the handful that anybody waits for (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

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


# Student's t distribution: what a mean of few numbers may stray by (Student 1908).
#
# With t = sqrt(dof) tan(angle) its density becomes cos(angle)^(dof - 1), smooth on a finite range, so one rule of
# integration serves every t.  Degrees of freedom need not be whole (Welch 1947).

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
MOST_DOF = 1e4  # from there on it is the normal distribution, and the density is too narrow for the rule


def two_sided_p(t: float, dof: float) -> float:
    """Probability of a value further from 0 than t, either way."""
    dof = min(dof, MOST_DOF)
    start = math.atan(abs(t) / math.sqrt(dof))
    half = (math.pi / 2 - start) / 2
    angles = start + half * (1 + NODES)
    tail = half * float(WEIGHTS @ np.cos(angles) ** (dof - 1))
    whole = math.exp(math.lgamma(dof / 2) + math.lgamma(0.5) - math.lgamma((dof + 1) / 2))  # both sides
    return min(2 * tail / whole, 1.0)


@lru_cache(maxsize=256)
def quantile(share: float, dof: float) -> float:
    """The t within which `share` of the values lie, 0 in the middle: 2.776 for 0.95 and 4."""
    low, high = 0.0, 1.0
    while two_sided_p(high, dof) > 1 - share:
        low, high = high, 2 * high
    for _ in range(32):  # nine digits
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, dof) > 1 - share else (low, middle)
    return high
