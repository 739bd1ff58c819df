"""How a quantized torch model does `edgemm eval`'s tasks beside the float one: paired, question by question.

The suites and the bootstrap are those of edgemm/evaluate; here is only a model that is in memory already.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgemm.evaluate.checkpoint_subject import CheckpointSubject
from edgemm.evaluate.compare import compare_records
from edgemm.evaluate.evaluation import SUITES, Plan, evaluate_subject
from edgemm.evaluate.subject import DrawSettings
from edgemm.model.unified import Unified

__all__ = ["Records", "differences", "drawn_share", "task_records"]

Records = dict[str, list[dict[str, Any]]]


def task_records(
    model: Unified,
    data: Path,
    limit: int | None,
    steps: int,
    groups: tuple[str, ...] = (),
    suites: tuple[str, ...] = SUITES,
) -> Records:
    """Every answer and drawing, judged; at most `limit` questions a kind and drawings a split, of `groups` if named."""
    settings = DrawSettings(num_inference_steps=steps)
    subject = CheckpointSubject.of(model, settings)
    return evaluate_subject(subject, data, Plan(suites, limit, groups=groups, settings=settings)).records


def drawn_share(records: Records) -> float:
    """Of the drawings, those that the judge names, or the checker passes."""
    right = [row["drawn_rank"] == 0 if "drawn_rank" in row else row["passed"] for row in records["drawing"]]
    return sum(right) / len(right)


def differences(plain: Records, quantized: Records, data: Path, limit: int | None) -> dict[str, Any]:
    """For the report: score -> both means, the difference and its 95 % interval."""
    found = compare_records(plain, quantized)
    return {
        "data": data.name,
        "limit": limit,
        "differences": {score: dataclasses.asdict(difference) for score, difference in found.items()},
    }
