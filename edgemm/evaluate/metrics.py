"""The numbers of the suites, as pure functions: shares with intervals, yes/no scores, distances between pictures.

Arrays in, numbers out; they know no model, no dataset and no file.  A seed is an argument.
Axes: n pictures of one set, m of the other, f features of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "Share", "YesNoScores", "kid", "psnr_db", "ratio_of_means", "share", "yes_no_scores"]

NORMAL_95 = 1.959963984540054  # two-sided quantile of the normal distribution
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value and the range that holds it 95 times in 100; nan where there was nothing to count."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Share(Interval):
    """So many of so many."""

    count: int


@dataclass(frozen=True)
class YesNoScores:
    """POPE's scores (arXiv:2305.10355); "yes" is the positive answer."""

    f1: float
    precision: float
    recall: float
    yes_ratio: float  # of all replies; far from the true ratio means that the model says yes, or no, to anything
    unclear: int  # replies that are neither; they count as wrong


def share(right: Sequence[bool] | np.ndarray) -> Share:
    """The share of True with Wilson's interval, which stays inside [0, 1] at any count."""
    count, hits = len(right), int(np.count_nonzero(right))
    if not count:
        return Share(math.nan, math.nan, math.nan, 0)
    z2, p = NORMAL_95**2, hits / count
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    reach = NORMAL_95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return Share(p, max(0.0, middle - reach), min(1.0, middle + reach), count)


def ratio_of_means(top: Sequence[float] | np.ndarray, bottom: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """mean(top) / mean(bottom) over the same samples, with a bootstrap that keeps both values of a sample together."""
    above, below = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} values over {len(below)}: the pairs must belong together")
    if not below.sum():
        return Interval(math.nan, math.nan, math.nan)
    rows = np.random.default_rng(seed).integers(len(above), size=(RESAMPLES, len(above)))
    sums = below[rows].sum(axis=1)
    ratios = above[rows].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def yes_no_scores(truth: Sequence[bool], said: Sequence[bool | None]) -> YesNoScores:
    """`said` is None where the reply was neither yes nor no."""
    true_yes = sum(answer and reply is True for answer, reply in zip(truth, said))
    said_yes, yes = sum(reply is True for reply in said), sum(map(bool, truth))
    return YesNoScores(
        f1=_fraction(2 * true_yes, said_yes + yes),
        precision=_fraction(true_yes, said_yes),
        recall=_fraction(true_yes, yes),
        yes_ratio=_fraction(said_yes, len(said)),
        unclear=sum(reply is None for reply in said),
    )


def kid(one: np.ndarray, other: np.ndarray) -> float:
    """Kernel distance between features (n, f) and (m, f): unbiased MMD^2 with the kernel (x.y / f + 1)^3
    (arXiv:1801.01401).  Zero on average for two halves of one set, so a little below zero is possible."""
    n, m = len(one), len(other)
    if min(n, m) < 2:
        return math.nan
    one, other = one.astype(np.float64), other.astype(np.float64)
    within = sum((_kernel(x, x).sum() - np.trace(_kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (one, other))
    return float(within - 2 * _kernel(one, other).mean())


def psnr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal over noise of pictures in [0, 1], whatever their shape; equal ones have 100."""
    noise = np.square(found.astype(np.float64) - wanted).mean()
    return -10 * math.log10(max(float(noise), 1e-10))


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3  # (n, m)


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
