"""MLPerf's own LoadGen asks, the runtime answers: single stream, offline, and single stream with token latencies.

LoadGen (mlcommons-loadgen) decides what is asked when and what was VALID; requests are answered by the runtime's
streams, the code that generate_text and generate_image are.  This is the harness alone: no MLPerf model, data set,
accuracy run or rule is kept, so nothing here is an MLPerf result.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgemm
from edgemm import progress
from edgemm.bench.bench import draws, prompt_of
from edgemm.bench.conditions import ClockWatch, make_card, read_cpu_times, report_other_work
from edgemm.bench.options import Plan
from edgemm.bench.pooled import SCHEMA_VERSION
from edgemm.bench.rows import Row, make_row
from edgemm.bench.workload import DRAWING, ONE_A_RUN
from edgemm.bundle.bundle import open_bundle
from edgemm.errors import MissingError
from edgemm.runtimes.text_call import TextChunk

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["LABEL", "parse_summary", "render_loadgen", "run_loadgen"]

LABEL = "LoadGen harness, not a submission"
QUERY = Row("one query, as the runtime answered it")
ENOUGH_FOR_P90 = 64  # queries: with fewer LoadGen cannot say a 90th percentile, and calls the run INVALID
MARGIN = 2.0  # prepared for more than it can: who runs out of queries before the time is over is INVALID
TRIES = 3  # an INVALID run is run anew, prepared for the speed that it showed
SUMMARY = "mlperf_log_summary.txt"
QUOTED = (  # LoadGen's name, ours, and what makes it milliseconds
    ("90.0th percentile latency (ns)", "ms at p90", 1e6),
    ("Samples per second", "queries/s", 1),
    ("90.00 percentile first token latency (ns)", "ms to first token at p90", 1e6),
    ("90.00 percentile time to output token (ns)", "ms a token at p90", 1e6),
    ("TPS w/o loadgen overhead", "tokens/s", 1),
)
FirstToken = Callable[[], None]


def run_loadgen(path: Path, plan: Plan, logs: Path | None = None, fewest: int = ENOUGH_FOR_P90) -> dict[str, Any]:
    """`logs` keeps what LoadGen writes, a folder a run; `fewest` queries are asked for in single stream."""
    try:
        version = metadata.version("mlcommons-loadgen")
        import mlperf_loadgen  # noqa: F401 - asked for before a model is loaded
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise MissingError("--loadgen needs MLPerf's LoadGen: pip install 'edgemm[loadgen]'") from error
    bundle = open_bundle(path, verify=False)
    fewest = max(fewest, plan.repetitions)
    runs: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    with (
        edgemm.load(path, device=plan.device, threads=plan.threads) as model,
        nullcontext(logs) if logs else tempfile.TemporaryDirectory() as folder,
    ):
        card = make_card(bundle, model.choice, model.threads, plan.root)
        watch = ClockWatch()
        before = read_cpu_times(watch.look())
        tests = _tests(model, plan)
        for name, test in progress.track(tests.items(), len(tests), "LoadGen", "tests"):
            progress.status(name)
            alone_s = _warm_up(test.answer, plan.warmup)
            latencies, summary = _until_valid(test, plan, fewest, alone_s, Path(folder or ".") / name)
            runs[name] = {"scenario": test.scenario, "token_latencies": test.token_latencies, **summary}
            rows[f"{name} query_ms"] = make_row(QUERY, latencies)
        progress.status("")
        other, busy = report_other_work(before, read_cpu_times(watch.look()))
    invalid = [
        f"LoadGen calls {name} INVALID: {run['why'] or 'see its log'}" for name, run in runs.items() if not run["valid"]
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "card": card,
        "plan": {**asdict(plan), "scenario": "loadgen"},
        "measured": {"rounds": max(row["count"] for row in rows.values())},
        "rows": rows,
        "loadgen": {"label": LABEL, "version": version, "runs": runs},
        "other_work": other,
        "warnings": [*invalid, *busy, *watch.problems()],
    }


Answer = Callable[[int, FirstToken], int]  # number of the query, called at the first token -> tokens made


@dataclass(frozen=True)
class _Test:
    answer: Answer
    scenario: str  # in LoadGen's words
    token_latencies: bool = False  # LoadGen is told the first token, too


def _tests(model: Model, plan: Plan) -> dict[str, _Test]:
    found: dict[str, _Test] = {}
    if model.manifest.loops.text:
        prompt = prompt_of(model, model.manifest, plan)

        def reply(index: int, first_token: FirstToken) -> int:
            return _reply(model, prompt, plan.new_tokens, first_token)

        found["reply-single-stream"] = _Test(reply, "SingleStream")
        found["reply-offline"] = _Test(reply, "Offline")
        found["reply-tokens"] = _Test(reply, "SingleStream", token_latencies=True)
    if draws(model.manifest):

        def picture(index: int, first_token: FirstToken) -> int:
            model.generate_image(DRAWING, num_inference_steps=plan.steps, seed=plan.seed + index)
            return 1

        found["image-single-stream"] = _Test(picture, "SingleStream")
        found["image-offline"] = _Test(picture, "Offline")
    return found


def _reply(model: Model, prompt: str, new_tokens: int, first_token: FirstToken) -> int:
    last: TextChunk | None = None
    for index, chunk in enumerate(model.stream_text(prompt, max_new_tokens=new_tokens, **ONE_A_RUN)):
        if index == 0:
            first_token()
        last = chunk
    assert last is not None and last.result is not None
    return last.result.metrics.new_tokens


def _warm_up(answer: Answer, count: int) -> float:
    """Seconds of the fastest answer: LoadGen prepares too few queries for a system that turns out faster."""
    times = []
    for index in range(max(count, 1)):
        start_s = time.perf_counter()
        answer(index, lambda: None)
        times.append(time.perf_counter() - start_s)
    return max(min(times), 1e-3)


def _until_valid(
    test: _Test, plan: Plan, fewest: int, alone_s: float, home: Path
) -> tuple[list[float], dict[str, Any]]:
    """The answers of one test and its summary; other work beside the warm-up makes it INVALID, not worthless."""
    tries = 0
    while True:
        tries += 1
        latencies = _one_test(test, plan, fewest, alone_s, home)
        summary = parse_summary((home / SUMMARY).read_text())
        if summary["valid"] or tries == TRIES:
            return latencies, {"tries": tries, **summary}
        alone_s = min(latencies) / 1e3


def _one_test(test: _Test, plan: Plan, fewest: int, alone_s: float, home: Path) -> list[float]:
    """Milliseconds of every answer; LoadGen's logs are in `home`."""
    import mlperf_loadgen as lg

    home.mkdir(parents=True, exist_ok=True)
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, test.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = max(int(plan.duration_s * 1000), 1)
    settings.min_query_count = fewest if test.scenario == "SingleStream" else 1
    settings.single_stream_expected_latency_ns = int(alone_s / MARGIN * 1e9)
    settings.offline_expected_qps = MARGIN / alone_s
    settings.use_token_latencies = test.token_latencies
    logging = lg.LogSettings()
    logging.log_output = lg.LogOutputSettings()
    logging.log_output.outdir = str(home)
    logging.log_output.copy_summary_to_stdout = False
    logging.enable_trace = False
    latencies: list[float] = []
    problem: list[BaseException] = []

    def issue(samples: Any) -> None:
        for sample in samples:
            start_s = time.perf_counter()
            made = 0
            if not problem:  # LoadGen has no way to stop, so the rest is answered with nothing
                try:
                    made = test.answer(sample.index, partial(_first_token, lg, sample.id, test.token_latencies))
                    latencies.append(float(f"{(time.perf_counter() - start_s) * 1e3:.6g}"))
                except BaseException as error:
                    problem.append(error)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0, made)])

    system = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(fewest, fewest, lambda indices: None, lambda indices: None)
    try:
        lg.StartTestWithLogSettings(system, library, settings, logging)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(system)
    if problem:
        raise problem[0]
    return latencies


def _first_token(lg: Any, identity: int, wanted: bool) -> None:
    if wanted:
        lg.FirstTokenComplete([lg.QuerySampleResponse(identity, 0, 0)])


def parse_summary(text: str) -> dict[str, Any]:
    """What LoadGen wrote: its verdict, its advice where that is INVALID, and every `name : number` of its results."""
    results, _, _ = text.partition("Test Parameters Used")
    figures = {
        name: float(value)
        for name, value in re.findall(r"^\s*([\w ./()%-]+?)\s*: ([-+]?[\d.]+(?:e[-+]?\d+)?)\s*$", results, re.MULTILINE)
    }
    _, _, advice = results.partition("Recommendations:")
    why = re.findall(r"^ \* (.*)$", advice.partition("Early Stopping")[0], re.MULTILINE)
    return {"valid": "Result is : VALID" in text, "why": " ".join(why), "figures": figures}


def render_loadgen(found: dict[str, Any]) -> list[str]:
    lines = [f"loadgen  {found['label']} (mlcommons-loadgen {found['version']})"]
    for name, run in found["runs"].items():
        told = [f"{words} {run['figures'][key] / scale:.4g}" for key, words, scale in QUOTED if key in run["figures"]]
        verdict = ("VALID" if run["valid"] else "INVALID") + (f" at try {run['tries']}" if run["tries"] > 1 else "")
        lines.append(f"loadgen  {name}: {verdict}; {', '.join(told)}")
    return lines
