"""A component alone: what one reply and one picture bound to it, run again and again.

The arrays are those of real work, so shapes, masks and lengths are true; nothing around the engine is timed.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgemm
from edgemm.bundle import open_bundle
from edgemm.errors import InputError
from edgemm.measure.bench import draws, prompt_of
from edgemm.measure.card import make_card
from edgemm.measure.clock_watch import ClockWatch
from edgemm.measure.engine_clock import Bound, EngineClock
from edgemm.measure.operator_profile import by_operator, profile
from edgemm.measure.other_work import read_cpu_times, report_other_work
from edgemm.measure.plan import Plan, Progress
from edgemm.measure.pooled import SCHEMA_VERSION
from edgemm.measure.rows import Row, make_row
from edgemm.measure.samples import warnings_about
from edgemm.measure.workload import DRAWING
from edgemm.measure.works import draw, read_picture, write_reply

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["bench_component"]

PROFILED_RUNS = 10
MOST_RUNS = 100_000
ALONE = Row("one run of the engine alone, in ms")


def bench_component(
    path: Path,
    component: str,
    plan: Plan,
    by_operators: bool = False,
    progress: Progress = lambda done, of, what: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, whose rows are the component's shapes; and the raw events of its profile, if one was asked for."""
    bundle = open_bundle(path, verify=False)
    with edgemm.load(path, device=plan.device, threads=plan.threads) as model:
        if component not in bundle.manifest.targets[model.choice.target]:
            known = ", ".join(bundle.manifest.targets[model.choice.target])
            raise InputError(f"this bundle has no component {component!r} for {model.choice.target}; it has: {known}")
        progress(0, plan.rounds + 1, "binding real arrays")
        shapes = _bound_by_real_work(model, component, plan)
        watch = ClockWatch()
        before = read_cpu_times(watch.look())
        samples = {_name(bound): _run_alone(bound, plan, watch, progress) for bound in shapes}
        other, busy = report_other_work(before, read_cpu_times(watch.look()))
        profiles = {_name(bound): profile(model, bound, PROFILED_RUNS) for bound in shapes if by_operators}
        card = make_card(bundle, model.choice, model.threads)
    result = {
        "schema_version": SCHEMA_VERSION,
        "card": card,
        "plan": asdict(plan),
        "measured": {"rounds": max(map(len, samples.values()))},
        "rows": {name: make_row(ALONE, values) for name, values in samples.items()},
        "operators": {name: by_operator(events) for name, events in profiles.items()},
        "other_work": other,
        "warnings": [*warnings_about(samples), *busy, *watch.problems()],
    }
    return result, [event for events in profiles.values() for event in events]


def _bound_by_real_work(model: Model, component: str, plan: Plan) -> list[Bound]:
    clock = EngineClock()
    model.watch_engines(clock.watch)
    if model.manifest.loops.text and component in ("transformer", "text_head", "image_encoder"):
        if component != "image_encoder":
            write_reply(model, prompt_of(model, model.manifest, plan), plan.new_tokens)
        else:
            read_picture(model)
    elif draws(model.manifest):
        draw(model, DRAWING, plan.steps, plan.seed)
    found = [bound for (name, _), bound in clock.bound.items() if name == component]
    if not found:
        raise InputError(f"{component} is not used by anything that this bundle was asked to do here")
    if component == "transformer":  # fitting the prompt bound other lengths before
        ran = {run.shape for run in [run for run in clock.runs if run.component == component][-plan.new_tokens :]}
        found = [bound for bound in found if bound.shape in ran]
    return found


def _run_alone(bound: Bound, plan: Plan, watch: ClockWatch, progress: Progress) -> list[float]:
    for _ in range(plan.warmup):
        bound.run()
    began_s, times = watch.look(), []
    while len(times) < plan.repetitions or (time.perf_counter() - began_s < plan.duration_s and len(times) < MOST_RUNS):
        progress(min(len(times), plan.repetitions), plan.repetitions + 1, _name(bound))
        start_s = time.perf_counter()
        bound.run()
        took_ms = (time.perf_counter() - start_s) * 1e3
        if not watch.refuse(took_ms):
            times.append(float(f"{took_ms:.6g}"))
    watch.look()
    return times


def _name(bound: Bound) -> str:
    return f"{bound.component} {bound.shape}".strip()
