"""Shapes drawn rightly pass, whatever was asked; another scene's picture does not."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.data.format import read_dataset
from edgemm.data.shapes import TASKS, build_shapes
from edgemm.data.writer import new_folder
from edgemm.evaluate.shapes_suite import run_shapes_suite
from edgemm.evaluate.subject import real_pictures
from tests.evaluate.paper_subject import PaperSubject


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes"
    with new_folder(path, force=False) as folder:
        build_shapes(folder, 64, 60, seed=3)
    return read_dataset(path)


@pytest.fixture(scope="module")
def pictures(shapes):
    return dict(zip([sample.captions[0] for sample in shapes.samples], real_pictures(shapes, shapes.samples, 64)))


def test_real_scenes_pass_every_task(shapes, pictures):
    result = run_shapes_suite(PaperSubject(pictures.__getitem__, lambda *_: "", 64), shapes, None)
    assert set(result.parts["train"].tasks) == set(TASKS)
    for part in result.parts.values():
        assert part.mean_of_tasks == part.real.value == 1.0
        assert part.shuffled.count == part.real.count and part.shuffled.value < 0.4


def test_white_paper_passes_none(shapes):
    blank = np.full((64, 64, 3), 255, np.uint8)
    result = run_shapes_suite(PaperSubject(lambda prompt: blank, lambda *_: "", 64), shapes, 6)
    assert result.parts["train"].mean_of_tasks == 0.0 and result.parts["train"].real.value == 1.0
    assert all(record["reason"].startswith("0 objects") for record in result.records)


def test_the_mean_is_over_tasks_not_over_drawings(shapes, pictures):
    blank = np.full((64, 64, 3), 255, np.uint8)
    tasks = {sample.captions[0]: sample.subgroup for sample in shapes.samples}

    def draw(prompt):
        return pictures[prompt] if tasks[prompt] == "counting" else blank

    part = run_shapes_suite(PaperSubject(draw, lambda *_: "", 64), shapes, None).parts["train"]
    assert part.tasks["counting"].value == 1.0
    assert part.mean_of_tasks == pytest.approx(1 / len(part.tasks))
