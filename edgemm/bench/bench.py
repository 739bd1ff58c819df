"""Times a bundle at its real work: loading, reading text and pictures, writing, drawing.

The runtime's public streams and its own metrics are all it uses.  Text, pictures and drawing take turns, so that heat
and other work fall on every row alike; warm-up runs are thrown away, every other sample is kept.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgemm
from edgemm import errors, progress
from edgemm.bench.conditions import ClockWatch, make_card, other_cores, read_cpu_times
from edgemm.bench.memory import MemoryWatch, measure_fresh, thinned
from edgemm.bench.options import Plan
from edgemm.bench.pooled import parts_of_pictures, parts_of_replies, pool
from edgemm.bench.rows import ROWS, Round, measured_rows, measured_work, named_works
from edgemm.bench.timeline import EngineClock, EngineRun
from edgemm.bench.workload import (
    DRAWING,
    QUESTION,
    Drawn,
    Written,
    draw,
    fit_prompt,
    read_picture,
    write_reply,
)
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.manifest import Manifest
from edgemm.device.child import ask
from edgemm.energy.meter import Meter, open_meter
from edgemm.runtimes.cache_budget import cache_bytes_a_slot

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = [
    "draws",
    "growth_of_prefill",
    "growth_of_tokens",
    "measure_once",
    "prompt_of",
    "run_bench",
    "run_in_turns",
    "run_processes",
]

FRESH_TIMEOUT_S = 1800.0
MOST_ROUNDS = 10_000
MOST_ENGINE_RUNS = 600  # in the timeline


@dataclass
class _Run:
    """What is gathered on the way."""

    watch: ClockWatch
    clock: EngineClock
    rounds: list[Round] = field(default_factory=list)
    other_cores: float | None = None


def run_bench(path: Path, plan: Plan, clock: EngineClock | None = None) -> dict[str, Any]:
    """The result of this process as one JSON document; for several processes see run_processes.

    `clock` is filled with every run of an engine, for a timeline.
    """
    return pool([measure_once(path, plan, clock)], plan)


def measure_once(path: Path, plan: Plan, clock: EngineClock | None = None) -> dict[str, Any]:
    """What this process saw, unjudged: plain values, so that a child can tell them."""
    bundle = open_bundle(path, verify=False)  # edgemm.load verifies
    manifest = bundle.manifest
    progress.status("loading in a fresh process")
    fresh = measure_fresh(_fresh_request(path, plan, manifest), FRESH_TIMEOUT_S)
    progress.status("loading")
    model = edgemm.load(path, device=plan.device, threads=plan.threads)
    progress.status("")
    card = make_card(bundle, model.choice, model.threads, plan.root)
    run = _Run(ClockWatch(), clock or EngineClock())
    model._engines.watch(run.clock.watch)
    with MemoryWatch(model.choice.device) as memory, open_meter(model.choice.device, Path(plan.root)) as meter:
        with progress.bar("measuring", plan.rounds, "rounds") as bar:
            _take_turns(model, manifest, plan, bar, run, meter)
        prefill = growth_of_prefill(model, manifest) if plan.growth and manifest.loops.text else None
    loaded = {name: [float(value)] for name, value in (fresh.value or {}).items() if name in ROWS}
    replies, pictures = [r.reply for r in run.rounds if r.reply], [r.picture for r in run.rounds if r.picture]
    return {
        "card": card,
        "measured": measured_work(run.rounds),
        "first_call_ms": fresh.value["first_call_ms"] if fresh.value else None,
        "samples": loaded | measured_rows(run.rounds, run.watch),
        "parts": {
            "reply": parts_of_replies([reply.metrics for reply in replies]),
            "image": parts_of_pictures([picture.metrics for picture in pictures]),
        },
        "outside": {"reply": _outside(replies, run.clock), "picture": _outside(pictures, run.clock)},
        "shortest_reply": min((reply.metrics.new_tokens for reply in replies), default=None),
        "memory": {**memory.report(), **_cache_memory(manifest, model.choice.target, run.rounds)},
        "growth": {"token_ms": growth_of_tokens(replies), "prefill_ms": prefill},
        "timeline": _timeline(run),
        "energy": meter.report(),
        "other_cores": run.other_cores,
        "problems": [*run.watch.problems(), *([f"fresh process {fresh.problem}"] if fresh.problem else [])],
    }


def _take_turns(model: Model, manifest: Manifest, plan: Plan, bar: progress.Bar, run: _Run, meter: Meter) -> None:
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
        done = _one_round(model, manifest, plan, index, prompt, meter)
        run.watch.look()
        run.clock.works += named_works(done)
        if kept:
            run.rounds.append(done)
        index += 1
        bar.update(index <= plan.rounds, "" if kept else "warming up")
    after = read_cpu_times(run.watch.look())
    run.other_cores = other_cores(before, after) if before and after else None


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


def _timeline(run: _Run) -> dict[str, list[list[Any]]] | None:
    """[name, start ms, length ms] of the last round's works, and of the engines meanwhile."""
    works = named_works(run.rounds[-1]) if run.rounds else []
    if not works:
        return None
    start_s, end_s = works[0].start_s, works[-1].end_s
    inside = [run for run in run.clock.runs if run.start_s >= start_s and run.end_s <= end_s]

    def told(runs: list[EngineRun]) -> list[list[Any]]:
        return [
            [r.component, round((r.start_s - start_s) * 1e3, 3), round((r.end_s - r.start_s) * 1e3, 3)] for r in runs
        ]

    return {"works": told(works), "engines": told(thinned(inside, MOST_ENGINE_RUNS))}


def _outside(works: Sequence[Written | Drawn], clock: EngineClock) -> list[float]:
    """Share of each run that no engine had; empty where no engine was watched."""
    spans = [(work.start_s, work.end_s) for work in works if work.end_s > work.start_s and clock.runs]
    return [1 - clock.spent_s(start, end) / (end - start) for start, end in spans]


def prompt_of(model: Model, manifest: Manifest, plan: Plan) -> str:
    if not manifest.loops.text:
        return ""

    def count(text: str) -> int:
        return model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens

    return fit_prompt(count, plan.prompt_tokens)


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


# How time grows with the context: a token after more tokens, a prompt that is longer.

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # tokens, template included
RUNS = 3
MOST_POINTS = 128


def growth_of_tokens(replies: Sequence[Written]) -> list[list[float]]:
    """[context, median ms of the token after it] over all replies; empty where there is no second token."""
    if not replies:
        return []
    shortest = min(len(reply.gaps_ms) for reply in replies)
    prompt = replies[0].metrics.prompt_tokens
    medians = np.median([reply.gaps_ms[:shortest] for reply in replies], axis=0) if shortest else []
    return thinned([[prompt + 1 + index, float(f"{ms:.6g}")] for index, ms in enumerate(medians)], MOST_POINTS)


def growth_of_prefill(model: Model, manifest: Manifest) -> list[list[float]]:
    """[prompt tokens, median ms of prefill], at lengths that double while the context has room."""

    def prefill(text: str) -> tuple[int, float]:
        metrics = model.generate_text(text, max_new_tokens=1).metrics
        return metrics.prompt_tokens, metrics.prefill_ms

    found: dict[int, float] = {}
    fitting = [length for length in LENGTHS if length < 0.95 * manifest.limits.max_context]
    for wanted in progress.track(fitting, len(fitting), "reading longer prompts", "lengths"):
        prompt = fit_prompt(lambda text: prefill(text)[0], wanted)
        runs = [prefill(prompt) for _ in range(RUNS)]
        found[runs[0][0]] = float(f"{np.median([ms for _, ms in runs]):.6g}")
    return [[tokens, ms] for tokens, ms in sorted(found.items())]


# The same measurement in several processes, one after the other, and of two bundles in turns.
#
# Each child starts anew, so that what a start decides by chance (where memory lies, what the machine does just then) is
# sampled too, and the interval of samples.py can see it.  Two bundles take turns, and who goes first alternates:
# neighbours in time make pairs, and a machine that slowly changes favours neither.

LOADING_S = 3600.0  # at most, with everything that is not measured
Seen = dict[str, Any]


def run_processes(path: Path, plan: Plan) -> dict[str, Any]:
    """The result of `plan.processes` children, in the form of run_bench."""
    open_bundle(path, verify=False)  # refused here, before anything starts
    seen = []
    for index in progress.track(range(plan.processes), plan.processes, "measuring", "processes"):
        growth = plan.growth and index == plan.processes - 1
        seen.append(_measure(path, replace(plan, growth=growth), index))
    return pool(seen, plan)


def run_in_turns(a: Path, b: Path, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results; process i of the one ran beside process i of the other."""
    for path in (a, b):
        open_bundle(path, verify=False)
    seen: tuple[list[Seen], list[Seen]] = ([], [])
    for index in progress.track(range(plan.processes), plan.processes, "measuring", "pairs of processes"):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            seen[side].append(_measure((a, b)[side], plan, index))
    return pool(seen[0], plan), pool(seen[1], plan)


def _measure(path: Path, plan: Plan, index: int) -> Seen:
    request = json.dumps({"bundle": str(path.absolute()), "plan": asdict(plan)})
    answer = ask("edgemm.bench.bench", [request], LOADING_S + 10 * plan.duration_s)
    if answer.value is None:
        raise errors.EdgemmError(f"process {index + 1} of {plan.processes} {answer.problem}")
    if "refused" in answer.value:
        kind, message = answer.value["refused"]
        raise getattr(errors, kind)(message)
    return answer.value


def _answer(request: dict[str, Any]) -> Seen:
    try:
        return measure_once(Path(request["bundle"]), Plan(**request["plan"]))
    except errors.EdgemmError as error:
        return {"refused": [type(error).__name__, str(error)]}


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
