"""What `edgemm quantize` does, once its words were read: make a spec, or search one; judge it; report it.

The spec is kept as soon as it is decided, the report is written after it; who misses a budget gets the report alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgemm import progress
from edgemm.data.format import read_dataset
from edgemm.errors import CheckFailedError
from edgemm.evaluate.evaluation import SUITES
from edgemm.model.unified import Unified
from edgemm.quantize.make import quantize
from edgemm.quantize.options import JudgeOptions, QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import Spec, journal_of
from edgemm.search.judges import (
    Budget,
    Records,
    Scores,
    ask,
    compare,
    differences,
    drawn_rightly,
    layer_signals,
    read_budget,
    require_budgets,
    task_records,
    with_drawn,
)
from edgemm.search.report import document_of, document_of_search, write_report
from edgemm.search.search import Aim, Checker, search

__all__ = ["AUTO_BUDGETS", "Job", "auto", "judged"]

AUTO_BUDGETS = {"text": "ppl+3%", "draw": "psnr30"}  # when nobody says otherwise

Keep = Callable[[Spec], None]  # writes it where it belongs


@dataclass(frozen=True)
class Job:
    """What both ways have in common."""

    checkpoint: tuple[str, str]  # name and hash
    options: QuantizeOptions
    judging: JudgeOptions
    steps: int  # of a drawing

    def budgets(self, otherwise: Mapping[str, str] = MappingProxyType({})) -> dict[str, Budget]:
        words = {side: word or otherwise.get(side) for side, word in self.judging.budgets.items()}
        return {side: read_budget(side, word) for side, word in words.items() if word}


def judged(model: Unified, job: Job, keep: Keep) -> Spec:
    """Raises CheckFailedError where a budget is missed; then nothing is kept."""
    budgets, page = tuple(job.budgets().values()), job.judging.report
    plain = None
    if budgets or page:
        progress.status("asking the float model")
        plain = ask(model, job.steps)
    suites = SUITES if page else ("draw",)  # a budget alone is about drawings
    before = tasks_of(model, job, suites)
    spec = quantize(model, job.options, job.checkpoint)
    if not budgets:
        keep(spec)
    if plain is None:
        return spec
    progress.status("asking the quantized model")
    signals = layer_signals(model, spec)
    swap(model, spec, folded=True)
    quantized = ask(model, job.steps)
    scores = compare(plain, quantized)
    after = tasks_of(model, job, suites)
    if before and after:
        scores = with_drawn(scores, drawn_rightly(before), drawn_rightly(after))
    progress.line(_line(scores))
    missed = None
    if budgets:
        try:
            require_budgets(scores, budgets)
            keep(spec)
        except CheckFailedError as error:
            missed = error
    if page:
        tasks = compare_tasks(job, before, after)
        write_report(page, document_of(spec, scores, signals, job.steps, tasks=tasks), plain, quantized)
    if missed:
        raise missed
    return spec


def auto(model: Unified, job: Job, goal: str, output: Path, keep: Keep) -> Spec:
    """The spec that a search finds; the report lies beside `output` when nobody names a place."""
    before = tasks_of(model, job)
    aim = Aim(goal, job.budgets(AUTO_BUDGETS), _checker(job))
    found = search(model, aim, job.options, journal_of(output), job.checkpoint)
    progress.line(_line(found.best.scores))
    keep(found.spec)
    journal_of(output).unlink(missing_ok=True)
    told = document_of_search(
        goal,
        {side: str(budget) for side, budget in aim.budgets.items()},
        found.best.name,
        [point.to_json() for point in found.points],
    )
    tasks = compare_tasks(job, before, tasks_of(model, job))
    page = job.judging.report or output.with_name(f"{output.name}.html")
    document = document_of(found.spec, found.best.scores, found.signals, job.steps, told, tasks)
    write_report(page, document, found.plain, found.quantized)
    progress.line(f"What was tried is in {page} and {page.with_suffix('.json').name}")
    return found.spec


def _checker(job: Job) -> Checker | None:
    """The dataset's judge of drawings, for every variant that a search judges in full."""
    data, limit, seeds, steps = job.judging.tasks, job.judging.tasks_limit, job.judging.tasks_seeds, job.steps
    if data is None:
        return None
    name = f"{data.name}, {limit} a split" + (f", {seeds} seeds" if seeds > 1 else "")
    return Checker(
        name,
        lambda model: drawn_rightly(task_records(model, data, limit, steps, suites=("draw",), seeds=seeds)),
    )


def tasks_of(model: Unified, job: Job, suites: tuple[str, ...] = SUITES) -> Records | None:
    """Of the model as it is now."""
    if job.judging.tasks is None:
        return None
    read_dataset(job.judging.tasks)
    progress.status("doing the dataset's tasks")
    judging = job.judging
    return task_records(
        model, job.judging.tasks, judging.tasks_limit, job.steps, suites=suites, seeds=judging.tasks_seeds
    )


def compare_tasks(job: Job, before: Records | None, after: Records | None) -> dict[str, Any] | None:
    data = job.judging.tasks
    if before is None or after is None or data is None:
        return None
    return differences(before, after, data, job.judging.tasks_limit)


def _line(scores: Scores) -> str:
    return (
        f"perplexity {scores.perplexity_float:.2f} -> {scores.perplexity:.2f} ({scores.perplexity_percent:+.2f} %), "
        f"tokens alike {100 * scores.token_agreement:.1f} %, PSNR {scores.psnr_db:.1f} dB, SSIM {scores.ssim:.4f}"
        + _drawn(scores)
    )


def _drawn(scores: Scores) -> str:
    if scores.drawn_lost_percent is None or scores.drawn_lost_range is None:
        return ""
    most, least = (-value for value in scores.drawn_lost_range)
    return f", drawn rightly {-scores.drawn_lost_percent:+.1f} % [{least:+.1f}, {most:+.1f}]"
