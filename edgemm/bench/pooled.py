"""What one or more processes saw of a bundle, as one result: its rows, its shares, and what has to be told about them.

Every row says how many samples each process gave.  Memory, growth and the timeline are the last process's, first calls
are medians; judgements (spread, drift, host-bound, other work) are made here, of all processes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from edgemm.bench.conditions import tell_other_work
from edgemm.bench.options import Plan
from edgemm.bench.rows import ROWS, make_row
from edgemm.energy.meter import pool_energy
from edgemm.report.samples import warnings_about
from edgemm.runtimes.image_call import ImageMetrics
from edgemm.runtimes.text_call import TextMetrics

__all__ = [
    "SCHEMA_VERSION",
    "pool",
    "HOST_BOUND",
    "WHOLE",
    "Times",
    "host_warning",
    "parts_of_pictures",
    "parts_of_replies",
    "shares",
]

SCHEMA_VERSION = 2  # bench.schema.json
Seen = dict[str, Any]  # what measure_once gives


def pool(seen: Sequence[Seen], plan: Plan) -> dict[str, Any]:
    """The JSON document that `edgemm bench` prints; processes in the order in which they ran."""
    last = seen[-1]
    cores = [one["other_cores"] for one in seen if one["other_cores"] is not None]
    other, busy = tell_other_work(max(cores) if cores else None)
    return {
        "schema_version": SCHEMA_VERSION,
        "card": seen[0]["card"],
        "plan": asdict(plan),
        "measured": _measured(seen),
        "first_call_ms": _medians([one["first_call_ms"] for one in seen if one["first_call_ms"]]),
        "rows": _rows(seen),
        "parts": {whole: shares(_joined([one["parts"][whole] for one in seen])) for whole in last["parts"]},
        "memory": last["memory"],
        "growth": last["growth"],
        "timeline": last["timeline"],
        "energy": pool_energy([one["energy"] for one in seen]),
        "other_work": other,
        "warnings": [*_judged(seen, plan), *busy, *_problems(seen)],
    }


def _rows(seen: Sequence[Seen]) -> dict[str, Any]:
    of = {name: [one["samples"].get(name, []) for one in seen] for name in ROWS}
    return {
        name: make_row(ROWS[name], [value for values in lists for value in values], [len(values) for values in lists])
        for name, lists in of.items()
        if any(lists)
    }


def _measured(seen: Sequence[Seen]) -> dict[str, int]:
    """The most work of any run, and how many runs of it."""
    most = _joined([{name: [count] for name, count in one["measured"].items()} for one in seen])
    rounds = sum(most.pop("rounds"))
    return {name: max(counts) for name, counts in most.items()} | {"rounds": rounds, "processes": len(seen)}


def _judged(seen: Sequence[Seen], plan: Plan) -> list[str]:
    samples = _joined([one["samples"] for one in seen])
    found = warnings_about({name: samples[name] for name, row in ROWS.items() if row.judged and name in samples})
    for work, outside in _joined([one["outside"] for one in seen]).items():
        found += host_warning(work, outside)
    shortest = min((one["shortest_reply"] for one in seen if one["shortest_reply"]), default=plan.new_tokens)
    if shortest < plan.new_tokens:
        found.append(f"the cache was full after {shortest} of {plan.new_tokens} tokens; rates are over those")
    return found


def _problems(seen: Sequence[Seen]) -> list[str]:
    """What a process told of itself, once where several told the same."""
    of = {line: [number for number, one in enumerate(seen) if line in one["problems"]] for line in _lines(seen)}
    return [
        line if len(numbers) == len(seen) else f"process {', '.join(str(n + 1) for n in numbers)}: {line}"
        for line, numbers in of.items()
    ]


def _lines(seen: Sequence[Seen]) -> list[str]:
    return list(dict.fromkeys(line for one in seen for line in one["problems"]))


def _joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Lists of the same name one after the other."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [value for part in parts for value in part.get(name, [])] for name in names}


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float] | None:
    together = _joined([{name: [value] for name, value in one.items()} for one in found])
    return {name: median(values) for name, values in together.items()} or None


# Which part of a reply and of a picture takes how much: the runtime's metrics as shares of the whole.
#
# The rest is what no part claims: tokenizing, sampling, bindings.  Medians over runs, so parts of a whole may differ
# from it by a little.

Times = dict[str, list[float]]  # part -> milliseconds of every run
WHOLE = "whole"

HOST_BOUND = 0.2  # of a run outside of every engine
SMALLEST = 0.0005  # share of a part worth a line


def parts_of_replies(found: Sequence[TextMetrics]) -> Times:
    return {
        "image_encode": [m.image_encode_ms for m in found],
        "prefill": [m.prefill_ms for m in found],
        "decode": [(m.new_tokens - 1) / m.decode_tokens_per_s * 1e3 if m.decode_tokens_per_s else 0.0 for m in found],
        WHOLE: [m.total_ms for m in found],
    }


def parts_of_pictures(found: Sequence[ImageMetrics]) -> Times:
    return {
        "prefill": [m.prefill_ms for m in found],
        "conditioner": [m.conditioner_ms for m in found],
        "denoiser": [m.steps * m.step_ms for m in found],
        "image_decoder": [m.decode_ms for m in found],
        WHOLE: [m.total_ms for m in found],
    }


def host_warning(name: str, outside: Sequence[float]) -> list[str]:
    """trtexec's first warning, in terms of these engines: `outside` are shares of runs that no engine had."""
    share = float(np.median(outside)) if len(outside) else 0.0
    if share <= HOST_BOUND:
        return []
    return [
        f"host-bound: {share:.0%} of a {name} passes outside of the engines (sampling, bindings, Python); "
        "a faster device would not shorten that"
    ]


def shares(times: Times) -> list[dict[str, Any]]:
    """Of the whole, what has a share worth a line, and the rest."""
    whole, parts = times[WHOLE], {name: values for name, values in times.items() if name != WHOLE}
    if not whole:
        return []
    rest = [total - sum(values) for total, *values in zip(whole, *parts.values())]
    total = float(np.median(whole))
    medians = {name: float(np.median(values)) for name, values in {**parts, "rest": rest}.items()}
    return [
        {"part": name, "ms": float(f"{ms:.6g}"), "share": round(ms / total, 4)}
        for name, ms in medians.items()
        if abs(ms) >= SMALLEST * total
    ]
