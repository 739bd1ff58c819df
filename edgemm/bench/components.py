"""A component alone: what one reply and one picture bound to it, run again and again.

The arrays are those of real work, so shapes, masks and lengths are true; nothing around the engine is timed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgemm
from edgemm import progress
from edgemm.bench.bench import draws, prompt_of
from edgemm.bench.conditions import ClockWatch, make_card, read_cpu_times, report_other_work
from edgemm.bench.options import Plan
from edgemm.bench.pooled import SCHEMA_VERSION
from edgemm.bench.rows import Row, make_row
from edgemm.bench.timeline import Bound, EngineClock
from edgemm.bench.workload import DRAWING, draw, read_picture, write_reply
from edgemm.bundle.bundle import open_bundle
from edgemm.errors import InputError, MissingError
from edgemm.report.samples import warnings_about

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["bench_component", "by_operator", "profile", "render_operators"]

PROFILED_RUNS = 10
MOST_RUNS = 100_000
ALONE = Row("one run of the engine alone, in ms")


def bench_component(
    path: Path, component: str, plan: Plan, by_operators: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, whose rows are the component's shapes; and the raw events of its profile, if one was asked for."""
    bundle = open_bundle(path, verify=False)
    with edgemm.load(path, device=plan.device, threads=plan.threads) as model:
        if component not in bundle.manifest.targets[model.choice.target]:
            known = ", ".join(bundle.manifest.targets[model.choice.target])
            raise InputError(f"this bundle has no component {component!r} for {model.choice.target}; it has: {known}")
        progress.status("binding real arrays")
        shapes = _bound_by_real_work(model, component, plan)
        progress.status("")
        watch = ClockWatch()
        before = read_cpu_times(watch.look())
        samples = {_name(bound): _run_alone(bound, plan, watch) for bound in shapes}
        other, busy = report_other_work(before, read_cpu_times(watch.look()))
        profiles = {_name(bound): profile(model, bound, PROFILED_RUNS) for bound in shapes if by_operators}
        card = make_card(bundle, model.choice, model.threads, plan.root)
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
    model._engines.watch(clock.watch)
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


def _run_alone(bound: Bound, plan: Plan, watch: ClockWatch) -> list[float]:
    for _ in range(plan.warmup):
        bound.run()
    began_s, times = watch.look(), []
    with progress.bar(_name(bound), plan.repetitions, "runs") as bar:
        while len(times) < plan.repetitions or (
            time.perf_counter() - began_s < plan.duration_s and len(times) < MOST_RUNS
        ):
            start_s = time.perf_counter()
            bound.run()
            took_ms = (time.perf_counter() - start_s) * 1e3
            if not watch.refuse(took_ms):
                times.append(float(f"{took_ms:.6g}"))
                bar.update(len(times) <= plan.repetitions)
    watch.look()
    return times


def _name(bound: Bound) -> str:
    return f"{bound.component} {bound.shape}".strip()


# One component by operator: ONNX Runtime's own profile, added up.
#
# A session with the profiler on runs the arrays that real work bound.  The raw events are in Chrome's trace format,
# which Perfetto opens too; the table has the form that `trtexec --exportProfile` writes, so its readers read this.  A
# profiled run is slower than a plain one: shares are to be trusted, totals are not.

PASS_OVER = 2  # runs before the ones that count
KERNEL = "_kernel_time"


def profile(model: Model, bound: Bound, runs: int) -> list[dict[str, Any]]:
    """ONNX Runtime's events of so many runs."""
    if model.choice.backend != "onnxruntime":
        raise MissingError(
            f"operators are told by ONNX Runtime, this model runs on {model.choice.backend}; use --device cpu"
        )
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = model.threads.count
    options.enable_profiling = True
    options.log_severity_level = 3
    graph = model.bundle.file(model.manifest.variant(bound.component, model.choice.target).graph)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=[model.choice.provider])
        io = session.io_binding()
        for bind, arrays in ((io.bind_input, bound.inputs), (io.bind_output, bound.outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for _ in range(PASS_OVER + runs):
            session.run_with_iobinding(io)
        return json.loads(Path(session.end_profiling()).read_text())


def by_operator(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """First {"count": runs}, then one entry an operator, the longest first; times of one run."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[PASS_OVER:]
    runs: list[dict[str, float]] = [{} for _ in starts]
    calls: dict[str, int] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(KERNEL):
            continue
        run = sum(start <= event["ts"] for start in starts) - 1
        if run >= 0:
            name = event["args"]["op_name"]
            runs[run][name] = runs[run].get(name, 0.0) + event["dur"] / 1e3
            calls[name] = calls.get(name, 0) + 1
    total = sum(sum(run.values()) for run in runs) or 1.0
    table = []
    for name in calls:
        times = [run.get(name, 0.0) for run in runs]
        table.append(
            {
                "name": name,
                "timeMs": round(sum(times), 4),
                "averageMs": round(sum(times) / len(runs), 5),
                "medianMs": round(statistics.median(times), 5),
                "percentage": round(100 * sum(times) / total, 2),
                "calls": calls[name] // len(runs),
            }
        )
    return [{"count": len(runs)}, *sorted(table, key=lambda row: -row["timeMs"])]


def render_operators(table: Sequence[dict[str, Any]], title: str) -> str:
    head, rows = table[0], table[1:]
    width = max([len(row["name"]) for row in rows] + [8])
    lines = [f"{title}: by operator, {head['count']} profiled runs (slower than plain ones)", ""]
    lines.append(f"{'operator':<{width}} {'calls':>6} {'ms a run':>9} {'share':>7}")
    for row in rows:
        lines.append(f"{row['name']:<{width}} {row['calls']:>6} {row['averageMs']:>9.3f} {row['percentage']:>6.1f}%")
    return "\n".join(lines)
