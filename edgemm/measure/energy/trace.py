"""Samples of one sensor to joules between two moments: arrays in, a number or a reason out.

Watts are integrated by the trapezoid rule, counters are subtracted; both are interpolated where a moment falls between
two samples.  Where samples are missing there is no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Energy", "energy_between"]


@dataclass(frozen=True)
class Energy:
    """Joules, or the reason why there are none."""

    joules: float | None
    samples: int  # it rests on
    problem: str = ""


def energy_between(
    times: Sequence[float], values: Sequence[float], counts: bool, start_s: float, end_s: float, longest_gap_s: float
) -> Energy:
    """`times` rise; `values` are joules since some beginning where `counts`, else watts."""
    if not end_s > start_s:
        return Energy(None, 0, f"the clock went from {start_s:.3f} s to {end_s:.3f} s")
    t, v = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)  # (n,), (n,)
    inside = (t >= start_s) & (t <= end_s)
    count = int(inside.sum())
    if not t.size or t[0] > start_s or t[-1] < end_s:
        return Energy(None, count, "no sample at the beginning or the end of the work")
    first, last = np.searchsorted(t, start_s, "right") - 1, np.searchsorted(t, end_s, "left")
    gap = float(np.diff(t[first : last + 1]).max(initial=0.0))
    if gap > longest_gap_s:
        return Energy(None, count, f"no sample for {gap:.2f} s")
    edges = np.interp([start_s, end_s], t, v)
    if counts:
        joules = float(edges[1] - edges[0])
    else:
        within = (t > start_s) & (t < end_s)
        at = np.concatenate([[start_s], t[within], [end_s]])
        watts = np.concatenate([edges[:1], v[within], edges[1:]])
        joules = float(((watts[1:] + watts[:-1]) * np.diff(at)).sum() / 2)
    if not joules > 0:
        return Energy(None, count, f"the sensor says {joules:g} J for {end_s - start_s:.3g} s: it moves too slowly")
    return Energy(joules, count)
