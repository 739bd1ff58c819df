"""Two models on the same questions and prompts: the difference of their scores, and whether it is more than chance.

Paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250): items are drawn again with both models' results kept
together, so what is hard for both does not blur the difference.  It knows records (evaluation.py), never models.
Axes: n items, r resamples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.errors import InputError
from edgemm.evaluate.metrics import Interval

__all__ = ["Difference", "compare_records", "paired_difference"]

RESAMPLES = 10_000
CHUNK = 500  # resamples at a time: memory


@dataclass(frozen=True)
class Difference(Interval):
    """Second minus first, of means over the same items."""

    first: float
    second: float
    count: int
    changed: int  # items whose result differs at all
    p_value: float  # two-sided: how often resampled differences fall on the other side of zero, doubled


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if len(one) != len(other):
        raise ValueError(f"{len(one)} results beside {len(other)}: the pairs must belong together")
    count = len(one)
    if not count:
        return Difference(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, math.nan)
    delta = other - one
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [delta[random.integers(count, size=(CHUNK, count))].mean(axis=1) for _ in range(RESAMPLES // CHUNK)]
    )  # (r)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min((means <= 0).mean(), (means >= 0).mean())
    return Difference(
        value=float(delta.mean()),
        low=float(low),
        high=float(high),
        first=float(one.mean()),
        second=float(other.mean()),
        count=count,
        changed=int(np.count_nonzero(delta)),
        p_value=float(min(1.0, 2 * tail)),
    )


def compare_records(
    first: Mapping[str, Sequence[Mapping[str, Any]]], second: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Difference]:
    """Score -> difference, of everything that both hold. Raises InputError where they asked other things."""
    values: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for name in first:
        if name not in second:
            raise InputError(f"only one of the two was evaluated on {name}")
        rows, others = ({_key(row): row for row in side[name]} for side in (first, second))
        if rows.keys() != others.keys():
            raise InputError(f"the two were asked different things in {name}: evaluate them with the same settings")
        for key, row in rows.items():
            for score, value in _scores(name, row):
                values[score].append((value, dict(_scores(name, others[key]))[score]))
    return {score: paired_difference([a for a, _ in pairs], [b for _, b in pairs]) for score, pairs in values.items()}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(part) for part in ("sample", "split", "question", "prompt", "seed"))


def _scores(name: str, row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What one record says: (name of the score, 0 or 1)."""
    split = row["split"]
    if name == "reading":
        found = [(f"{split}: {row['kind']}", float(row["right"]))]
        if row["kind"] != "label":
            found.append((f"{split}: all but label", float(row["right"])))
        if row.get("circular") is not None:
            found.append((f"{split}: {row['kind']}, every order", float(row["circular"])))
        return found
    if "drawn_rank" in row:
        return [(f"{split}: drawn top-1", float(row["drawn_rank"] == 0))]
    return [(f"{split}: {row['task']}", float(row["passed"])), (f"{split}: all tasks", float(row["passed"]))]
