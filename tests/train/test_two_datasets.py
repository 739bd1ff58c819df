"""Joint training that asks about the pictures of one dataset and draws those of another."""

from __future__ import annotations

import pytest

from edgemm.data.format import read_dataset
from edgemm.data.shapes import build_shapes
from edgemm.data.writer import new_folder
from edgemm.model import checkpoint
from edgemm.train.recipe import PARTS
from edgemm.train.tasks.codes import CodesTask
from edgemm.train.tasks.joint import JointTask
from tests.model.tiny import varied_micro
from tests.model.tiny_codes import tiny_codes
from tests.train.conftest import recipe


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "fixed"
    with new_folder(folder, force=False) as inside:
        build_shapes(inside, 64, 40, seed=7, tasks=("position",), fixed=True)
    return folder


def of_training(data):
    return [sample for sample in read_dataset(data).samples if sample.split == "train"]


def test_captions_come_from_one_and_questions_from_the_other(shapes, others, tmp_path):
    parts = ",".join(part for part in PARTS if part != "queries")
    both = recipe("micro-read", tmp_path, kind="joint", data=shapes, draw_data=others, start="micro", train=parts)
    task = JointTask(varied_micro(), both)
    drawn = {caption for sample in of_training(others) for caption in sample.captions}
    assert set(task.drawing.captions) == {"", *drawn}
    assert len(task.drawing.pixels) == len(of_training(others))
    assert len(task.reading.features) == len(of_training(shapes))


def test_codes_of_one_are_drawn_and_of_the_other_read(shapes, others, tmp_path):
    both = recipe("micro-read", tmp_path, kind="joint", data=shapes, draw_data=others, start="micro")
    task = CodesTask(checkpoint.build(tiny_codes(), 0), both)
    assert task.captions == [sample.captions for sample in of_training(others)]
    assert (len(task.drawn), len(task.codes)) == (len(of_training(others)), len(of_training(shapes)))
    asked = {question.row for question in task.questions}
    assert max(asked) == len(task.codes) - 1
