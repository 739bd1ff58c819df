"""A round: a reply, a picture read and a drawing, each once; and the samples that many of them give."""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.measure.clock_watch import ClockWatch
from edgemm.measure.engine_clock import EngineRun
from edgemm.measure.rows import ROWS
from edgemm.measure.works import Drawn, Written

__all__ = ["Round", "Samples", "measured_rows", "measured_work", "named_works"]

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
