"""The figures a benchmark reports: their names, units, and what exactly the clock saw.

A name ends in its unit, so that a number cannot be read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgemm.bench.conditions import ClockWatch
from edgemm.bench.timeline import EngineRun
from edgemm.bench.workload import Drawn, Written
from edgemm.report.samples import median_interval, summarise

__all__ = [
    "ABBREVIATIONS",
    "ROWS",
    "Row",
    "make_row",
    "medians_by_process",
    "Round",
    "Samples",
    "measured_rows",
    "measured_work",
    "named_works",
]


@dataclass(frozen=True)
class Row:
    timed: str
    more_is_better: bool = False
    judged: bool = True  # whether a spread or drift of its samples is worth a warning


ROWS = {
    "load_cold_ms": Row(
        "edgemm.load with every engine, hashes checked; fresh process, files not in memory", judged=False
    ),
    "load_warm_ms": Row("the same again in that process: libraries and files are in memory", judged=False),
    "peak_memory_bytes": Row(
        "resident, of a fresh process that loads, reads a picture, replies and draws", judged=False
    ),
    "released_memory_bytes": Row("resident, of the same after release_memory(): engines loaded, no call", judged=False),
    "closed_memory_bytes": Row("resident, of the same after close(): the libraries", judged=False),
    "time_to_first_token_ms": Row("from the call to the first token: tokenizing, prefill, sampling"),
    "prefill_tokens_per_s": Row("prompt tokens over the transformer's prefill alone", more_is_better=True),
    "decode_tokens_per_s": Row("tokens after the first, sampling included", more_is_better=True, judged=False),
    "time_per_output_token_ms": Row("(end to end - time to first token) / (tokens - 1)"),
    "inter_token_ms": Row(
        "from one token to the next as the stream hands them out; every gap is a sample", judged=False
    ),
    "image_encode_ms": Row("one picture through the image encoder, already decoded and resized"),
    "time_to_first_token_with_image_ms": Row("as above, with one picture and a short question"),
    "draw_prefill_ms": Row("the drawing prompt through the transformer, once a picture"),
    "conditioner_ms": Row("once a picture"),
    "denoise_step_ms": Row("one step, guidance included; mean over the steps of a picture"),
    "image_token_ms": Row("one token of a picture, guidance included; mean over the tokens of a picture"),
    "inter_step_ms": Row("from the end of one step to that of the next; every gap is a sample", judged=False),
    "image_decode_ms": Row("tokens to pixels"),
    "image_s": Row("one picture, from the call to pixels"),
}

ABBREVIATIONS = {  # row -> what the field calls it
    "time_to_first_token_ms": "TTFT",
    "time_per_output_token_ms": "TPOT",
    "inter_token_ms": "ITL",
}


def make_row(row: Row, values: Sequence[float], per_process: Sequence[int] | None = None) -> dict[str, Any]:
    """A row of a result, plain values; `per_process` counts each process's values, in order; None: all are of one."""
    summary = summarise(values, row.more_is_better)
    assert summary is not None, "a row without samples is left out, not made"
    made: dict[str, Any] = {"samples": list(values), "per_process": list(per_process or [len(values)])}
    interval = median_interval([median for median in medians_by_process(made) if median is not None])
    return {
        **asdict(summary),
        "coefficient_of_variance": summary.coefficient_of_variance,
        "p50_interval": [float(f"{end:.6g}") for end in interval] if interval else None,
        "timed": row.timed,
        "more_is_better": row.more_is_better,
        **made,
    }


def medians_by_process(row: dict[str, Any]) -> list[float | None]:
    """In order, None where a process gave no sample; a result of schema version 1 was of one process."""
    samples = np.asarray(row["samples"], dtype=np.float64)
    ends = np.cumsum(row.get("per_process", [samples.size]))
    return [float(np.median(part)) if part.size else None for part in np.split(samples, ends[:-1])]


# A round: a reply, a picture read and a drawing, each once; and the samples that many of them give.

Samples = dict[str, list[float]]


@dataclass
class Round:
    """Everything that was done once; None where the bundle cannot."""

    reply: Written | None = None
    picture_read: Written | None = None
    picture: Drawn | None = None


def named_works(done: Round) -> list[EngineRun]:
    works = {"reply": done.reply, "read a picture": done.picture_read, "draw": done.picture}
    return [EngineRun(name, "", work.start_s, work.end_s) for name, work in works.items() if work]


def measured_rows(rounds: list[Round], watch: ClockWatch) -> Samples:
    """Samples by row, in the order of ROWS; what the clock cannot have seen is left out, and told by `watch`."""
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    for done in rounds:
        if done.reply:
            m = done.reply.metrics
            found["time_to_first_token_ms"].append(m.time_to_first_token_ms)
            found["prefill_tokens_per_s"].append(m.prompt_tokens / m.prefill_ms * 1e3 if m.prefill_ms else 0.0)
            if m.new_tokens > 1:  # a reply may end before its second token, when the cache is full
                found["decode_tokens_per_s"].append(m.decode_tokens_per_s)
                found["time_per_output_token_ms"].append(1e3 / m.decode_tokens_per_s if m.decode_tokens_per_s else 0.0)
            found["inter_token_ms"] += done.reply.gaps_ms
        if done.picture_read:
            found["image_encode_ms"].append(done.picture_read.metrics.image_encode_ms)
            found["time_to_first_token_with_image_ms"].append(done.picture_read.metrics.time_to_first_token_ms)
        if done.picture:
            m = done.picture.metrics
            found["draw_prefill_ms"].append(m.prefill_ms)
            if m.conditioner_ms:
                found["conditioner_ms"].append(m.conditioner_ms)
                found["denoise_step_ms"].append(m.step_ms)
            else:  # what has no conditioner draws token by token
                found["image_token_ms"].append(m.step_ms)
            found["inter_step_ms"] += done.picture.gaps_ms
            found["image_decode_ms"].append(m.decode_ms)
            found["image_s"].append(m.total_ms / 1e3)
    believed = {name: [value for value in values if not watch.refuse(value)] for name, values in found.items()}
    return {name: [float(f"{value:.6g}") for value in values] for name, values in believed.items() if values}


def measured_work(rounds: list[Round]) -> dict[str, int]:
    """How much work a run really was: the most of any."""
    counts: dict[str, list[int]] = {}
    for done in rounds:
        if done.reply:
            counts.setdefault("prompt_tokens", []).append(done.reply.metrics.prompt_tokens)
            counts.setdefault("new_tokens", []).append(done.reply.metrics.new_tokens)
        if done.picture:
            counts.setdefault("steps", []).append(done.picture.metrics.steps)
    return {name: max(values) for name, values in counts.items()} | {"rounds": len(rounds)}
