"""The smallest shipped checkpoint, judged exactly: as torch and as a bundle in each precision.

No judge was trained here and no picture compared with torch's: a drawing shows what was asked for or it does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.data.shapes import TASKS, build_shapes
from edgemm.data.writer import new_folder
from edgemm.evaluate.evaluation import Plan, evaluate
from edgemm.verify.export_native import export_bundle

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "micro-shapes"
TAUGHT = [task for task in TASKS if task != "counting"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Scenes of another seed than the checkpoint's."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    with new_folder(path) as folder:
        build_shapes(folder, 64, 120, seed=99, tasks=TAUGHT, fixed=True)
    return path


@pytest.mark.parametrize(
    "precision",
    [None, "int8", pytest.param("fp32", marks=pytest.mark.slow), pytest.param("int4", marks=pytest.mark.slow)],
)
def test_it_draws_what_is_asked_and_reads_in_every_precision(precision, shapes, tmp_path):
    subject = CHECKPOINT
    if precision:
        subject = tmp_path / "micro.bundle"
        export_bundle(CHECKPOINT, subject, precision=precision)
    found = evaluate(subject, shapes, Plan(limit=40, splits=("train",), device="cpu", threads=1)).document
    drawn = found["draw"]["parts"]["train"]
    assert drawn["mean_of_tasks"] > 0.8
    assert drawn["shuffled"]["value"] < 0.3  # chance: what passes for another drawing's caption
    label = found["read"]["train"]["kinds"]["label"]
    assert label["accuracy"]["value"] > label["baseline"] + 0.3
