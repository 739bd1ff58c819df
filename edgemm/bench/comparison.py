"""Two results of `edgemm bench` beside each other: ratios with intervals, and what else differs between the runs.

Of several processes a side, the interval is of processes (samples.py), in pairs where they took turns.  Of one process
a
side it is a circular block bootstrap over rounds (Politis and Romano 1992), paired where both did the same rounds: it
cannot see what differs between two starts, so nothing is decided by it.  Many rows are judged together, and of twenty
intervals of 95 % one misses: a difference is called one when it stands after Holm's correction (1979) over all rows.
"""

from __future__ import annotations

import math
from statistics import geometric_mean
from typing import Any

import numpy as np

from edgemm.bench.rows import medians_by_process
from edgemm.errors import InputError
from edgemm.report.samples import ratio_of_medians

__all__ = ["compare", "render_comparison"]

SCHEMA_VERSION = 2  # comparison.schema.json
RESAMPLES = 2000
MOST_DRAWS = 4_000_000  # numbers in memory at once
FEWEST = 5  # samples for an interval of one process
ALLOWED = 0.05  # chance that any row at all is called different when none is
CARD = ("bundle", "bundle_sha256", "precision", "target", "device", "backend", "threads", "board", "power_mode", "cpu")
ONE_PROCESS = (
    "one process a side: its interval holds what changes within a process, and nothing of what differs between two "
    "starts, which is often more; --processes 6, or --against"
)
APART = (
    "a and b ran at different times, and what the machine did meanwhile is in the ratio; --against lets them take turns"
)


def compare(a: dict[str, Any], b: dict[str, Any], took_turns: bool = False, seed: int = 0) -> dict[str, Any]:
    """b over a, for every row that both have; plain values.  `took_turns`: process i of both ran side by side."""
    shared = [name for name in a["rows"] if name in b["rows"]]
    if not shared:
        raise InputError("the two results have no row in common")
    rows = {name: _row(a["rows"][name], b["rows"][name], took_turns, seed) for name in shared}
    for name, verdict in _verdicts(rows).items():
        rows[name]["verdict"] = verdict
    several = all(min(row["processes"]) > 1 for row in rows.values())
    return {
        "schema_version": SCHEMA_VERSION,
        "comparison": "b over a",
        "rows": rows,
        "left_out": sorted(set(a["rows"]) ^ set(b["rows"])),
        "notes": [note for note, holds in ((ONE_PROCESS, not several), (APART, several and not took_turns)) if holds],
        "differs": _differs(a, b),
    }


def _row(a: dict[str, Any], b: dict[str, Any], took_turns: bool, seed: int) -> dict[str, Any]:
    medians = _medians(a, b, took_turns)
    processes = [len(side) for side in medians]
    if min(processes) > 1:
        paired = took_turns
        found = ratio_of_medians(*medians, paired)
        ratio, low, high, p_value = found.ratio, found.low, found.high, found.p_value
        figures = [geometric_mean(side) for side in medians]
    else:
        one, two = np.asarray(a["samples"], dtype=np.float64), np.asarray(b["samples"], dtype=np.float64)
        paired, p_value = one.size == two.size, None
        ratio = float(np.median(two / one)) if paired else float(np.median(two) / np.median(one))
        low, high = _interval(one, two, paired, seed)
        figures = [a["p50"], b["p50"]]
    return {
        "a": figures[0],
        "b": figures[1],
        "ratio": ratio,
        "low": low,
        "high": high,
        "interval_of": "processes" if p_value is not None else "rounds of one process",
        "p_value": p_value,
        "paired": paired,
        "processes": processes,
        "samples": [len(a["samples"]), len(b["samples"])],
        "more_is_better": bool(a["more_is_better"]),
    }


def _medians(a: dict[str, Any], b: dict[str, Any], took_turns: bool) -> tuple[list[float], list[float]]:
    """Of the processes that gave samples; of sides that took turns, in pairs."""
    one, two = medians_by_process(a), medians_by_process(b)
    if took_turns:
        pairs = [(x, y) for x, y in zip(one, two, strict=True) if x is not None and y is not None]
        return [x for x, _ in pairs], [y for _, y in pairs]
    return [x for x in one if x is not None], [y for y in two if y is not None]


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


def _verdicts(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    judged = sorted((row["p_value"], name) for name, row in rows.items() if row["p_value"] is not None)
    stands: set[str] = set()
    for rank, (p_value, name) in enumerate(judged):
        if p_value * (len(judged) - rank) > ALLOWED:
            break
        stands.add(name)
    return {name: _verdict(row, name in stands) for name, row in rows.items()}


def _verdict(row: dict[str, Any], stands: bool) -> str:
    if row["low"] is None:
        return "too few samples for an interval"
    if row["low"] <= 1 <= row["high"]:
        return "no difference seen"
    direction = "better" if (row["low"] > 1) == row["more_is_better"] else "worse"
    if row["p_value"] is None:
        return f"b was {direction} in this one process"
    return f"b is {direction}" if stands else f"b may be {direction}: among so many rows it can be chance"


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
    told = [f"note     {note}" for note in found["notes"]] + [f"differs  {line}" for line in found["differs"]]
    return "\n".join([*lines, *([""] if told else []), *told])
