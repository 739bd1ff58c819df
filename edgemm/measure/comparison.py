"""Two results of `edgemm bench` beside each other: ratios with intervals, and what else differs between the runs.

Rows of equally many samples are paired round by round, so both sides had the same prompt and the same seed; the figure
is the median of the ratios.  Otherwise it is the ratio of the medians.  Intervals: 95 % of a circular block bootstrap
(Politis and Romano 1992): neighbours in time share heat and other work, and single samples would promise too much.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgemm.errors import InputError

__all__ = ["compare", "render_comparison"]

RESAMPLES = 2000
MOST_DRAWS = 4_000_000  # numbers in memory at once
FEWEST = 5  # samples for an interval
CARD = ("bundle", "bundle_sha256", "precision", "target", "device", "backend", "threads", "board", "power_mode", "cpu")


def compare(a: dict[str, Any], b: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """b over a, for every row that both have; plain values."""
    shared = [name for name in a["rows"] if name in b["rows"]]
    if not shared:
        raise InputError("the two results have no row in common")
    rows = {name: _row(a["rows"][name], b["rows"][name], seed) for name in shared}
    left_out = sorted(set(a["rows"]) ^ set(b["rows"]))
    return {
        "schema_version": 1,
        "comparison": "b over a",
        "rows": rows,
        "left_out": left_out,
        "differs": _differs(a, b),
    }


def _row(a: dict[str, Any], b: dict[str, Any], seed: int) -> dict[str, Any]:
    one, two = np.asarray(a["samples"], dtype=np.float64), np.asarray(b["samples"], dtype=np.float64)
    paired = one.size == two.size
    ratio = float(np.median(two / one)) if paired else float(np.median(two) / np.median(one))
    low, high = _interval(one, two, paired, seed)
    return {
        "a": a["p50"],
        "b": b["p50"],
        "ratio": ratio,
        "low": low,
        "high": high,
        "paired": paired,
        "samples": [one.size, two.size],
        "verdict": _verdict(low, high, bool(a["more_is_better"])),
    }


def _interval(a: np.ndarray, b: np.ndarray, paired: bool, seed: int) -> tuple[float | None, float | None]:
    if min(a.size, b.size) < FEWEST:
        return None, None
    generator = np.random.default_rng(seed)
    count = int(min(RESAMPLES, max(200, MOST_DRAWS // max(a.size, b.size))))
    if paired:
        ratios = np.median((b / a)[_blocks(a.size, count, generator)], axis=1)
    else:
        above, below = (np.median(x[_blocks(x.size, count, generator)], axis=1) for x in (b, a))
        ratios = above / below
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _blocks(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, size) indices, in runs of about sqrt(size) neighbours that wrap around."""
    length = max(1, round(math.sqrt(size)))
    starts = generator.integers(0, size, (count, -(-size // length)))
    return ((starts[:, :, None] + np.arange(length)) % size).reshape(count, -1)[:, :size]


def _verdict(low: float | None, high: float | None, more_is_better: bool) -> str:
    if low is None or high is None:
        return "too few samples for an interval"
    if low <= 1 <= high:
        return "no difference seen"
    return "b is better" if (low > 1) == more_is_better else "b is worse"


def _differs(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What was not the same: a ratio may be of that, too."""
    found = [
        f"{name}: {a[part].get(name)} against {b[part].get(name)}"
        for part, names in (("card", CARD), ("measured", ("prompt_tokens", "new_tokens", "steps")))
        for name in names
        if a[part].get(name) != b[part].get(name)
    ]
    versions = [document["card"].get("versions", {}) for document in (a, b)]
    for name in sorted(set(versions[0]) | set(versions[1])):
        if versions[0].get(name) != versions[1].get(name):
            found.append(f"{name} {versions[0].get(name)} against {versions[1].get(name)}")
    for side, document in (("a", a), ("b", b)):
        found += [f"{side}: {warning}" for warning in document.get("warnings", [])]
    return found


def render_comparison(found: dict[str, Any], a: str, b: str) -> str:
    lines = ["=== Comparison, b over a ===", "", f"a  {a}", f"b  {b}", ""]
    width = max(len(name) for name in found["rows"])
    lines.append(f"{'':<{width}}  {'a':>10} {'b':>10} {'ratio':>7}  {'95 %':<15} ")
    for name, row in found["rows"].items():
        ends = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] is not None else "-"
        figures = " ".join(f"{row[side]:>10.4g}" for side in ("a", "b"))
        lines.append(f"{name:<{width}}  {figures} {row['ratio']:>7.3f}  {ends:<15} {row['verdict']}")
    if found["left_out"]:
        lines += ["", f"only in one of them: {', '.join(found['left_out'])}"]
    if found["differs"]:
        lines += ["", *(f"differs  {line}" for line in found["differs"])]
    return "\n".join(lines)
