"""Drawings of coloured shapes, judged exactly, by GenEval's six kinds of task (arXiv:2310.11513).

The prompt is the short caption, which claims no more than the checker asks for (evaluate/shapes_checker.py), or a graph
of things, whose every edge is checked.  The real
pictures are checked too: they say what the checker itself would miss.  Each drawing is also held against the caption of
another of its task: what passes there is chance, whatever the model likes to draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.data.format import Dataset, Sample
from edgemm.data.shapes import TASKS
from edgemm.errors import InputError
from edgemm.evaluate.metrics import Share, share
from edgemm.evaluate.shapes_checker import check_sample
from edgemm.evaluate.subject import DRAWN_SPLITS, Drawings, Subject, draw_samples, some

__all__ = ["ShapesPart", "ShapesResult", "run_shapes_suite", "task_of"]


@dataclass(frozen=True)
class ShapesPart:
    """The scores of one split."""

    tasks: dict[str, Share]
    mean_of_tasks: float  # GenEval's overall score
    real: Share  # real pictures that pass
    shuffled: Share  # drawings that pass for another drawing's caption


@dataclass(frozen=True, eq=False)
class ShapesResult:
    parts: dict[str, ShapesPart]  # split -> scores
    drawings: dict[str, Drawings]
    records: list[dict[str, Any]]  # one a drawing


def run_shapes_suite(subject: Subject, dataset: Dataset, limit: int | None) -> ShapesResult:
    """At most `limit` drawings a split."""
    parts, drawings, records = {}, {}, []
    for split, what in DRAWN_SPLITS.items():
        samples = [sample for sample in dataset.split(split) if dataset.kind == "shapes" or sample.group == "drawn"]
        if not samples:
            continue
        drawings[split] = draw_samples(subject, dataset, some(samples, limit, "id"), 0, what)
        rows = _records(drawings[split])
        parts[split] = _scores(rows, drawings[split])
        records += rows
    if not parts:
        raise InputError(f"{dataset.path}: no picture in {' or '.join(DRAWN_SPLITS)}")
    return ShapesResult(parts, drawings, records)


def task_of(sample: Sample) -> str:
    """GenEval's, or how many things a graph has."""
    scene = sample.scene or {}
    return f"{len(scene['objects'])} things" if "graph" in scene else scene["task"]


def _tasks(records: list[dict[str, Any]]) -> list[str]:
    """Those that there are, GenEval's in its order."""
    return sorted({row["task"] for row in records}, key=lambda task: (TASKS.index(task) if task in TASKS else 0, task))


def _scores(records: list[dict[str, Any]], drawings: Drawings) -> ShapesPart:
    passed = {task: [row["passed"] for row in records if row["task"] == task] for task in _tasks(records)}
    tasks = {task: share(found) for task, found in passed.items()}
    real = [check_sample(picture, sample).passed for picture, sample in zip(drawings.real, drawings.samples)]
    mean = float(np.mean([found.value for found in tasks.values()]))
    return ShapesPart(tasks, mean, share(real), share(_shuffled(records, drawings)))


def _shuffled(records: list[dict[str, Any]], drawings: Drawings) -> list[bool]:
    """Whether each drawing passes for a caption half its task away."""
    passed: list[bool] = []
    for task in _tasks(records):
        rows = [row for row, record in enumerate(records) if record["task"] == task]
        others = rows[len(rows) // 2 :] + rows[: len(rows) // 2]
        pairs = zip(rows, others, strict=True)
        passed += [check_sample(drawings.drawn[row], drawings.samples[other]).passed for row, other in pairs]
    return passed


def _records(drawings: Drawings) -> list[dict[str, Any]]:
    rows = []
    for sample, prompt, seed, picture in zip(drawings.samples, drawings.prompts, drawings.seeds, drawings.drawn):
        verdict = check_sample(picture, sample)
        rows.append(
            {
                "sample": sample.id,
                "split": sample.split,
                "task": task_of(sample),
                "prompt": prompt,
                "seed": seed,
                "passed": verdict.passed,
                "reason": verdict.reason,
            }
        )
    return rows
