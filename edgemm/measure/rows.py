"""The figures a benchmark reports: their names, units, and what exactly the clock saw.

A name ends in its unit, so that a number cannot be read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgemm.measure.ratio import median_interval
from edgemm.measure.samples import summarise

__all__ = ["ROWS", "Row", "make_row", "medians_by_process"]


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
