"""Times a bundle at its real work: loading, reading text and pictures, writing, drawing.

The runtime's public calls and their own metrics are all it uses.  Text, pictures and drawing take turns, so that heat
and other work fall on every row alike; warm-up runs are thrown away, every other sample is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgemm
from edgemm.bundle import open_bundle
from edgemm.errors import UsageError
from edgemm.manifest import Manifest
from edgemm.measure.card import make_card
from edgemm.measure.energy.meter import Meter, open_meter
from edgemm.measure.fresh_process import measure_fresh
from edgemm.measure.rows import ROWS
from edgemm.measure.samples import summarise, warnings_about
from edgemm.measure.workload import DRAWING, QUESTION, fit_prompt, noise_picture

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["SCHEMA_VERSION", "Plan", "Samples", "run_bench"]

SCHEMA_VERSION = 1
FRESH_TIMEOUT_S = 1800.0

Samples = dict[str, list[float]]
Counts = dict[str, list[int]]
Progress = Callable[[int, int, str], None]  # done, of how many, what comes next


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    prompt_tokens: int = 128  # template included
    new_tokens: int = 64
    steps: int | None = None  # denoising steps; None takes the bundle's own number
    repetitions: int = 5
    warmup: int = 1
    device: str = "auto"
    threads: int | None = None
    seed: int = 0  # of the first picture; each run draws another one

    def __post_init__(self) -> None:
        for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("steps", 1), ("repetitions", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, expected at least {low}")

    @property
    def rounds(self) -> int:
        return self.warmup + self.repetitions


def run_bench(path: Path, plan: Plan, progress: Progress = lambda done, of, what: None) -> dict[str, Any]:
    """The result as one JSON document; its fields are those of the last line that `edgemm bench` prints."""
    bundle = open_bundle(path, verify=False)  # edgemm.load verifies
    progress(0, plan.rounds + 1, "loading in a fresh process")
    fresh = measure_fresh(_fresh_request(path, plan, bundle.manifest), FRESH_TIMEOUT_S)
    model = edgemm.load(path, device=plan.device, threads=plan.threads)
    card = make_card(bundle, model.choice, model.threads)
    found = {name: value for name, value in (fresh.value or {}).items() if name in ROWS}
    samples: Samples = {name: [float(value)] for name, value in found.items()}
    with open_meter(model.choice.device) as meter:
        counts = _take_turns(model, bundle.manifest, plan, progress, samples, meter)
    return {
        "schema_version": SCHEMA_VERSION,
        "card": card,
        "plan": asdict(plan),
        "measured": {name: max(values) for name, values in counts.items()},
        "first_call_ms": fresh.value["first_call_ms"] if fresh.value else None,
        "rows": _rows(samples),
        "energy": meter.report(),
        "warnings": [*_remarks(samples, counts, plan), *([f"fresh process {fresh.problem}"] if fresh.problem else [])],
    }


def _take_turns(
    model: Model, manifest: Manifest, plan: Plan, progress: Progress, samples: Samples, meter: Meter
) -> Counts:
    """Fills `samples` row by row; what comes back is how much work each run really was."""
    counts: Counts = {}
    prompt = fit_prompt(lambda text: _prompt_tokens(model, text), plan.prompt_tokens) if manifest.loops.text else ""
    for index in range(plan.rounds):
        kept = index >= plan.warmup
        into: Samples = samples if kept else {}
        if index == plan.warmup:
            meter.forget()
        progress(index + 1, plan.rounds + 1, "measuring" if kept else "warming up")
        if manifest.loops.text:
            _measure_writing(model, prompt, plan, into, counts, meter)
        if _reads_pictures(manifest):
            _measure_reading(model, into)
        if manifest.loops.denoise:
            _measure_drawing(model, plan, index, into, counts, meter)
    return counts


def _fresh_request(path: Path, plan: Plan, manifest: Manifest) -> dict[str, Any]:
    text = {"prompt": QUESTION, "max_new_tokens": plan.new_tokens} if manifest.loops.text else None
    return {
        "bundle": os.path.abspath(path),
        "device": plan.device,
        "threads": plan.threads,
        "reads_pictures": _reads_pictures(manifest),
        "text": text,
        "image": _drawing(plan, 0) if manifest.loops.denoise else None,
    }


def _reads_pictures(manifest: Manifest) -> bool:
    return manifest.loops.text is not None and "image_encoder" in manifest.components


def _drawing(plan: Plan, index: int) -> dict[str, Any]:
    return {"prompt": DRAWING, "num_inference_steps": plan.steps, "seed": plan.seed + index}


def _prompt_tokens(model: Model, text: str) -> int:
    return model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens


def _measure_writing(model: Model, prompt: str, plan: Plan, into: Samples, counts: Counts, meter: Meter) -> None:
    with meter.work("token") as work:
        metrics = model.generate_text(prompt, max_new_tokens=plan.new_tokens).metrics
        work.units = metrics.new_tokens
    counts.setdefault("prompt_tokens", []).append(metrics.prompt_tokens)
    counts.setdefault("new_tokens", []).append(metrics.new_tokens)
    _note(into, "time_to_first_token_ms", metrics.time_to_first_token_ms)
    _note(into, "prefill_tokens_per_s", metrics.prompt_tokens / metrics.prefill_ms * 1e3)
    if metrics.decode_tokens_per_s:  # 0 when the reply ended before its second token
        _note(into, "decode_tokens_per_s", metrics.decode_tokens_per_s)
        _note(into, "time_per_output_token_ms", 1e3 / metrics.decode_tokens_per_s)


def _measure_reading(model: Model, into: Samples) -> None:
    metrics = model.generate_text(QUESTION, images=[noise_picture()], max_new_tokens=1).metrics
    _note(into, "image_encode_ms", metrics.image_encode_ms)
    _note(into, "time_to_first_token_with_image_ms", metrics.time_to_first_token_ms)


def _measure_drawing(model: Model, plan: Plan, index: int, into: Samples, counts: Counts, meter: Meter) -> None:
    with meter.work("image") as work:
        metrics = model.generate_image(**_drawing(plan, index)).metrics
        work.units = 1
    counts.setdefault("steps", []).append(metrics.steps)
    _note(into, "draw_prefill_ms", metrics.prefill_ms)
    _note(into, "conditioner_ms", metrics.conditioner_ms)
    _note(into, "denoise_step_ms", metrics.step_ms)
    _note(into, "image_decode_ms", metrics.decode_ms)
    _note(into, "image_s", metrics.total_ms / 1e3)


def _note(into: Samples, name: str, value: float) -> None:
    into.setdefault(name, []).append(float(f"{value:.6g}"))  # no clock has more digits than that


def _rows(samples: Samples) -> dict[str, Any]:
    rows = {}
    for name, row in ROWS.items():
        summary = summarise(samples.get(name, []), row.more_is_better)
        if summary:
            variance = summary.coefficient_of_variance
            kept = {"timed": row.timed, "more_is_better": row.more_is_better, "samples": samples[name]}
            rows[name] = {**asdict(summary), "coefficient_of_variance": variance, **kept}
    return rows


def _remarks(samples: Samples, counts: Counts, plan: Plan) -> list[str]:
    found = warnings_about({name: samples[name] for name, row in ROWS.items() if row.judged and name in samples})
    shortest = min(counts.get("new_tokens", ()), default=plan.new_tokens)
    if shortest < plan.new_tokens:
        found.append(f"the model ended its reply after {shortest} of {plan.new_tokens} tokens; rates are over those")
    return found
