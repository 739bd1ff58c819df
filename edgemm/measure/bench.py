"""Times a bundle at its real work: loading, reading text and pictures, writing, drawing.

The runtime's public streams and its own metrics are all it uses.  Text, pictures and drawing take turns, so that heat
and other work fall on every row alike; warm-up runs are thrown away, every other sample is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgemm
from edgemm.bundle import open_bundle
from edgemm.errors import UsageError
from edgemm.manifest import Manifest
from edgemm.measure.card import make_card
from edgemm.measure.clock_watch import ClockWatch
from edgemm.measure.energy.meter import Meter, open_meter
from edgemm.measure.engine_clock import EngineClock, EngineRun
from edgemm.measure.fresh_process import measure_fresh
from edgemm.measure.growth import growth_of_prefill, growth_of_tokens
from edgemm.measure.kv_bytes import cache_bytes_a_slot
from edgemm.measure.memory_watch import MemoryWatch, thinned
from edgemm.measure.other_work import read_cpu_times, report_other_work
from edgemm.measure.parts import host_warning, parts_of_pictures, parts_of_replies
from edgemm.measure.rows import ROWS
from edgemm.measure.samples import summarise, warnings_about
from edgemm.measure.workload import DRAWING, QUESTION, fit_prompt
from edgemm.measure.works import Drawn, Written, draw, read_picture, write_reply

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["SCHEMA_VERSION", "Plan", "Progress", "Round", "Samples", "draws", "measured_rows", "prompt_of", "run_bench"]

SCHEMA_VERSION = 1  # bench.schema.json
FRESH_TIMEOUT_S = 1800.0
MOST_ROUNDS = 10_000
MOST_ENGINE_RUNS = 600  # in the timeline

Samples = dict[str, list[float]]
Progress = Callable[[int, int, str], None]  # done, of how many, what comes next


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    prompt_tokens: int = 128  # template included
    new_tokens: int = 64
    steps: int | None = None  # denoising steps; None takes the bundle's own number
    repetitions: int = 20
    warmup: int = 3
    duration_s: float = 0.0  # runs are added until they took so long together
    device: str = "auto"
    threads: int | None = None
    seed: int = 0  # of the first picture; each run draws another one
    growth: bool = False  # also how prefill grows with the prompt

    def __post_init__(self) -> None:
        for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("steps", 1), ("repetitions", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, expected at least {low}")
        if not 0 <= self.duration_s <= 86_400:
            raise UsageError(f"duration_s is {self.duration_s}, expected 0 to a day")

    @property
    def rounds(self) -> int:
        return self.warmup + self.repetitions


@dataclass
class Round:
    """Everything that was done once; None where the bundle cannot."""

    reply: Written | None = None
    picture_read: Written | None = None
    picture: Drawn | None = None


@dataclass
class _Run:
    """What is gathered on the way."""

    watch: ClockWatch
    clock: EngineClock
    rounds: list[Round] = field(default_factory=list)
    other: tuple[dict[str, Any], list[str]] = field(default_factory=lambda: report_other_work(None, None))


def run_bench(
    path: Path, plan: Plan, progress: Progress = lambda done, of, what: None, clock: EngineClock | None = None
) -> dict[str, Any]:
    """The result as one JSON document; its fields are those of the last line that `edgemm bench` prints.

    `clock` is filled with every run of an engine, for a timeline.
    """
    bundle = open_bundle(path, verify=False)  # edgemm.load verifies
    manifest = bundle.manifest
    progress(0, plan.rounds + 1, "loading in a fresh process")
    fresh = measure_fresh(_fresh_request(path, plan, manifest), FRESH_TIMEOUT_S)
    model = edgemm.load(path, device=plan.device, threads=plan.threads)
    card = make_card(bundle, model.choice, model.threads)
    run = _Run(ClockWatch(), clock or EngineClock())
    model.watch_engines(run.clock.watch)
    with MemoryWatch(model.choice.device) as memory, open_meter(model.choice.device) as meter:
        _take_turns(model, manifest, plan, progress, run, meter)
        prefill = growth_of_prefill(model, manifest) if plan.growth and manifest.loops.text else None
    loaded = {name: [float(value)] for name, value in (fresh.value or {}).items() if name in ROWS}
    samples = loaded | measured_rows(run.rounds, run.watch)
    return {
        "schema_version": SCHEMA_VERSION,
        "card": card,
        "plan": asdict(plan),
        "measured": _measured(run.rounds),
        "first_call_ms": fresh.value["first_call_ms"] if fresh.value else None,
        "rows": _rows(samples),
        "parts": {
            "reply": parts_of_replies([r.reply.metrics for r in run.rounds if r.reply]),
            "image": parts_of_pictures([r.picture.metrics for r in run.rounds if r.picture]),
        },
        "memory": {**memory.report(), **_cache_memory(manifest, model.choice.target, run.rounds)},
        "growth": {"token_ms": growth_of_tokens([r.reply for r in run.rounds if r.reply]), "prefill_ms": prefill},
        "timeline": _timeline(run),
        "energy": meter.report(),
        "other_work": run.other[0],
        "warnings": [*_remarks(samples, run, plan), *([f"fresh process {fresh.problem}"] if fresh.problem else [])],
    }


def _take_turns(model: Model, manifest: Manifest, plan: Plan, progress: Progress, run: _Run, meter: Meter) -> None:
    """Fills `run`, round by round."""
    prompt = prompt_of(model, manifest, plan)
    index, began_s = 0, 0.0
    before = None
    while index < plan.rounds or (run.watch.look() - began_s < plan.duration_s and index < MOST_ROUNDS):
        kept = index >= plan.warmup
        if index == plan.warmup:
            meter.forget()
            began_s = run.watch.look()
            before = read_cpu_times(began_s)
        progress(min(index + 1, plan.rounds), plan.rounds + 1, "measuring" if kept else "warming up")
        done = _one_round(model, manifest, plan, index, prompt, meter)
        run.watch.look()
        run.clock.works += _named(done)
        if kept:
            run.rounds.append(done)
        index += 1
    run.other = report_other_work(before, read_cpu_times(run.watch.look()))


def _one_round(model: Model, manifest: Manifest, plan: Plan, index: int, prompt: str, meter: Meter) -> Round:
    done = Round()
    if manifest.loops.text:
        with meter.work("token") as work:
            done.reply = write_reply(model, prompt, plan.new_tokens)
            work.units = done.reply.metrics.new_tokens
    if _reads_pictures(manifest):
        done.picture_read = read_picture(model)
    if draws(manifest):
        with meter.work("image") as work:
            done.picture = draw(model, DRAWING, plan.steps, plan.seed + index)
            work.units = 1
    return done


def _named(done: Round) -> list[EngineRun]:
    works = {"reply": done.reply, "read a picture": done.picture_read, "draw": done.picture}
    return [EngineRun(name, "", work.start_s, work.end_s) for name, work in works.items() if work]


def _timeline(run: _Run) -> dict[str, list[list[Any]]] | None:
    """[name, start ms, length ms] of the last round's works, and of the engines meanwhile."""
    works = _named(run.rounds[-1]) if run.rounds else []
    if not works:
        return None
    start_s, end_s = works[0].start_s, works[-1].end_s
    inside = [run for run in run.clock.runs if run.start_s >= start_s and run.end_s <= end_s]

    def told(runs: list[EngineRun]) -> list[list[Any]]:
        return [
            [r.component, round((r.start_s - start_s) * 1e3, 3), round((r.end_s - r.start_s) * 1e3, 3)] for r in runs
        ]

    return {"works": told(works), "engines": told(thinned(inside, MOST_ENGINE_RUNS))}


def prompt_of(model: Model, manifest: Manifest, plan: Plan) -> str:
    if not manifest.loops.text:
        return ""

    def count(text: str) -> int:
        return model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens

    return fit_prompt(count, plan.prompt_tokens)


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


def _measured(rounds: list[Round]) -> dict[str, int]:
    """How much work a run really was: the most of any."""
    counts: dict[str, list[int]] = {}
    for done in rounds:
        if done.reply:
            counts.setdefault("prompt_tokens", []).append(done.reply.metrics.prompt_tokens)
            counts.setdefault("new_tokens", []).append(done.reply.metrics.new_tokens)
        if done.picture:
            counts.setdefault("steps", []).append(done.picture.metrics.steps)
    return {name: max(values) for name, values in counts.items()} | {"rounds": len(rounds)}


def _cache_memory(manifest: Manifest, target: str, rounds: list[Round]) -> dict[str, int | None]:
    if "transformer" not in manifest.targets[target]:
        return {"kv_bytes_a_token": None, "kv_bytes": None}
    a_token = cache_bytes_a_slot(manifest.variant("transformer", target))
    slots = [r.reply.metrics.prompt_tokens + r.reply.metrics.new_tokens for r in rounds if r.reply]
    return {"kv_bytes_a_token": a_token, "kv_bytes": a_token * max(slots) if slots else None}


def _fresh_request(path: Path, plan: Plan, manifest: Manifest) -> dict[str, Any]:
    text = {"prompt": QUESTION, "max_new_tokens": plan.new_tokens, "ignore_eos": True} if manifest.loops.text else None
    image = {"prompt": DRAWING, "num_inference_steps": plan.steps, "seed": plan.seed} if draws(manifest) else None
    return {
        "bundle": os.path.abspath(path),
        "device": plan.device,
        "threads": plan.threads,
        "reads_pictures": _reads_pictures(manifest),
        "text": text,
        "image": image,
    }


def draws(manifest: Manifest) -> bool:
    """By denoising, or token by token."""
    return manifest.loops.denoise is not None or manifest.loops.image_tokens is not None


def _reads_pictures(manifest: Manifest) -> bool:
    return manifest.loops.text is not None and "image_encoder" in manifest.components


def _rows(samples: Samples) -> dict[str, Any]:
    rows = {}
    for name, row in ROWS.items():
        summary = summarise(samples.get(name, []), row.more_is_better)
        if summary:
            variance = summary.coefficient_of_variance
            kept = {"timed": row.timed, "more_is_better": row.more_is_better, "samples": samples[name]}
            rows[name] = {**asdict(summary), "coefficient_of_variance": variance, **kept}
    return rows


def _remarks(samples: Samples, run: _Run, plan: Plan) -> list[str]:
    found = warnings_about({name: samples[name] for name, row in ROWS.items() if row.judged and name in samples})
    found += run.other[1] + run.watch.problems()
    for name, works in (("reply", [r.reply for r in run.rounds]), ("picture", [r.picture for r in run.rounds])):
        spans = [(work.start_s, work.end_s) for work in works if work]
        outside = [1 - run.clock.spent_s(start, end) / (end - start) for start, end in spans if end > start]
        found += host_warning(name, outside) if run.clock.runs else []
    shortest = min((r.reply.metrics.new_tokens for r in run.rounds if r.reply), default=plan.new_tokens)
    if shortest < plan.new_tokens:
        found.append(f"the cache was full after {shortest} of {plan.new_tokens} tokens; rates are over those")
    return found
