"""Numbers measured more than once, boiled down without hiding how far they spread.

Pure functions over lists of floats; it knows no clock and no model.  A percentile that the samples cannot carry is
None, never a guess: nothing is said about the slowest hundredth from fewer than a hundred samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Summary", "drift", "summarise", "warnings_about"]

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
