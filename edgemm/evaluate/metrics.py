"""The numbers of the suites, as pure functions: shares with intervals, yes/no scores, distances between pictures.

Arrays in, numbers out; they know no model, no dataset and no file.  A seed is an argument.
Axes: n pictures of one set, m of the other, f features of a picture.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.errors import InputError

__all__ = [
    "Interval",
    "Share",
    "YesNoScores",
    "kid",
    "psnr_db",
    "ratio_of_means",
    "share",
    "yes_no_scores",
    "Difference",
    "compare_records",
    "paired_difference",
]

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


def share(right: Sequence[bool] | np.ndarray, tries: int = 1) -> Share:
    """The share of True with Wilson's interval, which stays inside [0, 1] at any count.  Of several tries an item only
    the items are counted: its tries are alike, so they narrow the interval by less than as many items would."""
    count = len(right) // tries
    if not count:
        return Share(math.nan, math.nan, math.nan, 0)
    z2, p = NORMAL_95**2, np.count_nonzero(right) / len(right)
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


# Two models on the same questions and prompts: the difference of their scores, and whether it is more than chance.
#
# Paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250): items are drawn again with both models' results kept
# together, so what is hard for both does not blur the difference.  It knows records (evaluation.py), never models.
# Axes: n items, r resamples.

PAIRED_RESAMPLES = 10_000
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
        unknown = dict.fromkeys(("value", "low", "high", "first", "second", "p_value"), math.nan)
        return Difference(**unknown, count=0, changed=0)
    delta = other - one
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [delta[random.integers(count, size=(CHUNK, count))].mean(axis=1) for _ in range(PAIRED_RESAMPLES // CHUNK)]
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
    """Score -> difference, of everything that both hold: items are questions and prompts, whose drawings from several
    seeds are averaged first. Raises InputError where they asked other things."""
    values: defaultdict[str, defaultdict[Any, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for name in first:
        if name not in second:
            raise InputError(f"only one of the two was evaluated on {name}")
        rows, others = ({_key(row): row for row in side[name]} for side in (first, second))
        if rows.keys() != others.keys():
            raise InputError(f"the two were asked different things in {name}: evaluate them with the same settings")
        for key, row in rows.items():
            for score, value in _scores(name, row):
                values[score][key[:-1]].append((value, dict(_scores(name, others[key]))[score]))
    means = {score: np.array([np.mean(tries, axis=0) for tries in items.values()]) for score, items in values.items()}
    return {score: paired_difference(*pairs.T) for score, pairs in means.items()}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(part) for part in ("sample", "split", "kind", "question", "prompt", "seed"))  # the seed last


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
