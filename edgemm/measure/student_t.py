"""Student's t distribution: what a mean of few numbers may stray by (Student 1908).

With t = sqrt(dof) tan(angle) its density becomes cos(angle)^(dof - 1), smooth on a finite range, so one rule of
integration serves every t.  Degrees of freedom need not be whole (Welch 1947).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["quantile", "two_sided_p"]

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
