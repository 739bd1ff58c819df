"""Many requests for one model: all at once (offline), or coming as they like (server).

The names are MLPerf Inference's (arXiv:1911.02549); this is no MLPerf run, for that see loadgen.py.  Requests share the
runtime's one queue, as in a program with threads: its engines take turns.  A latency begins when a request was due, so
time in the queue counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgemm
from edgemm import progress
from edgemm.bench.bench import draws, prompt_of
from edgemm.bench.conditions import ClockWatch, make_card, read_cpu_times, report_other_work
from edgemm.bench.options import Plan
from edgemm.bench.pooled import SCHEMA_VERSION
from edgemm.bench.rows import Row, make_row
from edgemm.bench.workload import DRAWING, draw, write_reply
from edgemm.bundle.bundle import open_bundle
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["SCENARIOS", "arrivals", "run_scenario"]

SCENARIOS = ("single-stream", "offline", "server")
WORKERS = {"offline": 4, "server": 32}
CAREFUL = 0.5  # of the rate that one request after the other gives, when no rate was asked for

ROWS = {
    "reply_latency_ms": Row("from when a reply was due to its last token, waiting included"),
    "image_latency_ms": Row("from when a picture was due to its pixels, waiting included"),
    "replies_per_s": Row("finished replies over the time from the first request to the last answer", True),
    "new_tokens_per_s": Row("tokens of all replies over the same time", True),
    "images_per_s": Row("finished pictures over the time from the first request to the last answer", True),
}


@dataclass(frozen=True)
class _Answer:
    due_s: float
    end_s: float
    tokens: int


def arrivals(count: int, rate_per_s: float, seed: int) -> np.ndarray:
    """Seconds at which requests come: a Poisson process."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, count))


def run_scenario(path: Path, scenario: str, plan: Plan, rate_per_s: float | None = None) -> dict[str, Any]:
    if rate_per_s is not None and not 0 < rate_per_s <= 1e6:
        raise UsageError(f"rate is {rate_per_s}, expected requests a second above 0")
    bundle = open_bundle(path, verify=False)
    rows: dict[str, Any] = {}
    rates: dict[str, float] = {}
    with edgemm.load(path, device=plan.device, threads=plan.threads) as model:
        card = make_card(bundle, model.choice, model.threads, plan.root)
        watch = ClockWatch()
        before = read_cpu_times(watch.look())
        for kind, request in _requests(model, plan).items():
            progress.status(f"{kind}: warming up")
            alone_s = _alone(request, plan.warmup)
            count = max(plan.repetitions, int(plan.duration_s / alone_s))
            due = np.zeros(count)
            if scenario == "server":
                rates[kind] = rate_per_s or CAREFUL / alone_s
                due = arrivals(count, rates[kind], plan.seed)
            progress.status("")
            with progress.bar(f"{kind}s", count, "requests") as bar:
                rows |= _rows(kind, _serve(request, due, WORKERS[scenario], bar))
        other, busy = report_other_work(before, read_cpu_times(watch.look()))
    return {
        "schema_version": SCHEMA_VERSION,
        "card": card,
        "plan": {**asdict(plan), "scenario": scenario, "rate_per_s": rates or None, "workers": WORKERS[scenario]},
        "measured": {"rounds": max(row["count"] for row in rows.values())},
        "rows": rows,
        "other_work": other,
        "warnings": [*busy, *watch.problems(), *_overload(rows, rates)],
    }


def _requests(model: Model, plan: Plan) -> dict[str, Callable[[int], int]]:
    """Kind of request -> does number i, and gives how many tokens it made."""
    found: dict[str, Callable[[int], int]] = {}
    if model.manifest.loops.text:
        prompt = prompt_of(model, model.manifest, plan)
        found["reply"] = lambda i: write_reply(model, prompt, plan.new_tokens).metrics.new_tokens
    if draws(model.manifest):
        found["image"] = lambda i: _picture(model, plan, i)
    return found


def _picture(model: Model, plan: Plan, index: int) -> int:
    draw(model, DRAWING, plan.steps, plan.seed + index)
    return 0  # tokens


def _alone(request: Callable[[int], int], warmup: int) -> float:
    """Seconds of one request when nothing else is asked for."""
    took_s = 1e-3
    for index in range(max(warmup, 1) + 1):
        start_s = time.perf_counter()
        request(index)
        took_s = max(time.perf_counter() - start_s, 1e-3)
    return took_s


def _serve(request: Callable[[int], int], due: np.ndarray, workers: int, bar: progress.Bar) -> list[_Answer]:
    begin_s = time.perf_counter()

    def answer(index: int) -> _Answer:
        tokens = request(index)
        answered = _Answer(begin_s + float(due[index]), time.perf_counter(), tokens)
        bar.update()
        return answered

    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for index, at in enumerate(due):
            time.sleep(max(0.0, begin_s + float(at) - time.perf_counter()))
            waiting.append(pool.submit(answer, index))
        return [future.result() for future in waiting]


def _rows(kind: str, answers: list[_Answer]) -> dict[str, Any]:
    took_s = max(a.end_s for a in answers) - min(a.due_s for a in answers)
    samples = {f"{kind}_latency_ms": [(a.end_s - a.due_s) * 1e3 for a in answers]}
    samples["replies_per_s" if kind == "reply" else "images_per_s"] = [len(answers) / took_s]
    if kind == "reply":
        samples["new_tokens_per_s"] = [sum(a.tokens for a in answers) / took_s]
    return {name: make_row(ROWS[name], [float(f"{value:.6g}") for value in values]) for name, values in samples.items()}


def _overload(rows: dict[str, Any], rates: dict[str, float]) -> list[str]:
    """A queue that only grows has no latency: it has a length."""
    found = []
    for kind, rate in rates.items():
        done = rows["replies_per_s" if kind == "reply" else "images_per_s"]["p50"]
        if done < 0.9 * rate:
            found.append(f"overloaded: {kind} requests came at {rate:.3g} a second, {done:.3g} were answered")
    return found
