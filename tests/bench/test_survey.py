"""What benchmarks/survey.py makes of its runs: intervals, verdicts, the gate, and failures that stay."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from edgemm.data.clips import build_clips
from edgemm.data.format import read_dataset
from edgemm.data.graphs import build_graphs
from edgemm.data.shapes import COLOURS
from edgemm.evaluate.subject import shown
from edgemm.train.recipe import ReadRecipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def survey():
    pytest.importorskip("torch")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("survey", BENCHMARKS / "survey.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["survey"] = module  # its dataclasses look there
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def runs(key, *values):
    return [{"seed": seed, key: value} for seed, value in enumerate(values)]


def density(t, degrees):
    """Student's, from its formula."""
    front = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return front * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)


def test_intervals_are_students(survey):
    for count, quantile in survey.T95.items():
        t = np.linspace(-quantile, quantile, 200_001)
        assert np.trapezoid(density(t, count - 1), t) == pytest.approx(0.95, abs=1e-4)
    mean, half = survey._interval([0.1, 0.2, 0.4])
    assert (mean, half) == pytest.approx((0.7 / 3, 2.4841 * statistics.stdev([0.1, 0.2, 0.4])), rel=1e-4)


def test_everything_is_whatever_folder_has_scores(survey, tmp_path):
    """Seeds in the order of their numbers, of rows in the order of the table, and nothing else that stands there."""
    args = argparse.Namespace(runs=tmp_path)
    for name, seed in (("joint, dense", 120), ("joint, dense", 7), ("joint", 12), ("joint", 3)):
        survey._folder(name, seed, args).mkdir()
        (survey._folder(name, seed, args) / "scores.json").write_text(json.dumps({"seed": seed}))
    survey._folder("joint", 5, args).mkdir()  # not done
    for other in ("eye-3-0ab4", "joint-", "others-9"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "scores.json").write_text("{}")
    found = survey._everything(args)
    assert list(found) == [name for name in survey.ROWS if name in ("joint", "joint, dense")]
    assert found == {"joint": runs_of(3, 12), "joint, dense": runs_of(7, 120)}


def runs_of(*seeds):
    return [{"seed": seed} for seed in seeds]


def test_one_seed_tells_nothing_apart(survey):
    scores = {"joint": runs("checker", 0.9), "joint, dense": runs("checker", 0.1)}
    (line,) = survey._pair(scores, "joint", "joint, dense", True)
    assert line.endswith("(one seed): not told apart.")


def test_seeds_are_paired_and_less_loss_is_better(survey):
    scores = {
        "joint": runs("flow_loss", 0.10, 0.20, 0.30),
        "joint, dense": runs("flow_loss", 0.15, 0.251, 0.349),
    }
    (line,) = survey._pair(scores, "joint", "joint, dense", True)
    assert line.endswith(": better.")
    (line,) = survey._pair(scores, "joint, dense", "joint", True)
    assert line.endswith(": worse.")


def test_reading_below_the_gate_is_not_told_apart(survey):
    read = {"joint": runs("questions", 0.6, 0.6, 0.6), "reading alone": runs("questions", 0.3, 0.3, 0.3)}
    lines = survey._compared(read, ["A"])
    assert lines[0] == "Part A: the best reader answers 0.60 on seen pairs; the bar is 0.8."
    assert lines[1].endswith("not told apart.")
    read["joint"] = runs("questions", 0.8, 0.8, 0.8)
    assert survey._compared(read, ["A"])[1].endswith("better.")


def test_a_run_that_failed_stays_in_the_table(survey):
    scores = {"joint": [*runs("checker", 0.5, 0.6), {"seed": 2, "error": "no memory"}]}
    (table,) = survey._tables(scores)
    assert table[1][:2] == ("joint", "2 of 3")


def test_every_row_has_a_part_and_a_design_that_is_one(survey):
    for name, row in survey.ROWS.items():
        assert row.part in "ABCD" and survey._config(row.designs).name == "micro", name
    assert "Rules" in survey.__doc__ or "The rules" in survey.__doc__


class Tracker:
    """What needs no training: the pixels of a shape's colour, and their middle on a canvas that wraps around.

    `blind` to the order of frames, it sees them in an order of their own.
    """

    def __init__(self, dataset, blind=False):
        self.blind = blind
        self.colours = {  # of the shapes in some frames, in whatever order
            frozenset(map(np.ndarray.tobytes, shown(dataset, sample))): {
                item["name"]: COLOURS[item["colours"][0]] for item in sample.scene["objects"]
            }
            for sample in dataset.samples
        }

    def read(self, asked):
        return (self.reply(*one) for one in asked)

    def reply(self, frames, question):
        colours = self.colours[frozenset(map(np.ndarray.tobytes, frames))]
        frames = np.array(sorted(frames, key=np.ndarray.tobytes)) if self.blind else frames
        steps = {name: self.steps(frames, colours[name]) for name in colours if name in question}
        if question.startswith("Which moves first"):
            return min(steps, key=lambda name: (np.abs(steps[name]).max(1) > 0.5).argmax())
        (found,) = steps.values()
        x, y = found.sum(0)
        if question.startswith("How"):
            return "quickly" if np.abs(found).max() > 1.5 else "slowly"
        return ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("up", "down")[int(y > 0)]

    def steps(self, frames, colour):
        """(f - 1, 2): pixels in x and y from frame to frame."""
        near = np.abs(frames.astype(int) - colour).sum(-1) < 60
        turns = [np.exp(2j * np.pi * np.stack(one.nonzero()[::-1]) / len(one)).mean(1) for one in near]
        ahead = np.array(turns[1:]) / np.array(turns[:-1])
        return np.angle(ahead) / (2 * np.pi) * len(frames[0])


def test_clips_are_judged_by_pairs_that_no_one_answers_who_is_blind_to_the_order_of_frames(survey, tmp_path):
    build_clips(tmp_path / "films", 32, 400, seed=0)
    dataset, scores = read_dataset(tmp_path / "films"), sys.modules["survey_scores"]
    found = scores._watched(dataset, Tracker(dataset), scores.SEEN, "as they are", 40)
    assert found == dict.fromkeys(("direction", "order", "speed", "twins"), 1.0)
    blind = scores._watched(dataset, Tracker(dataset, blind=True), scores.SEEN, "as they are", 40)
    assert blind["twins"] == 0 and max(blind["direction"], blind["order"]) <= 0.5


def test_one_frame_of_a_clip_is_a_still_picture(survey, tmp_path):
    build_clips(tmp_path, 32, 4, seed=0)
    before = read_dataset(tmp_path)
    frames = [shown(before, sample)[4] for sample in before.samples]
    survey._middle_frames(tmp_path)
    after = read_dataset(tmp_path)
    assert all(np.array_equal(shown(after, sample), frame) for sample, frame in zip(after.samples, frames, strict=True))
    assert after.questions == before.questions


def test_what_a_document_holds_is_not_run_again_where_the_settings_are_the_same(survey, tmp_path):
    document = {"steps": 1000, "batch": 32, "limit": 400, "graphs": 8000}
    document["scores"] = {"joint, dense": [{"seed": 1, "questions": 0.5}], "a row that is no more": [{"seed": 0}]}
    (tmp_path / "survey.json").write_text(json.dumps(document))
    for steps, taken in ((30, False), (1000, True)):
        args = argparse.Namespace(
            runs=tmp_path / str(steps), output=tmp_path / "survey.json", **document | {"steps": steps}
        )
        survey._take_from(args)
        assert survey._is_kept("joint, dense", 1, args) == taken
    assert survey._kept("joint, dense", 1, args)["questions"] == 0.5
    assert [path.name for path in args.runs.iterdir()] == ["joint-dense-1"]


class Stage:
    """In the place of training: stops once behind a state, as if killed, and then goes on to the end."""

    def __init__(self, stops):
        self.stops, self.began = stops, []

    def __call__(self, recipe):
        import torch

        state = Path(recipe.output) / "state.pt"
        self.began.append(state.exists())
        torch.save({"core_s": 1000.0}, state)
        if len(self.began) == self.stops:
            raise KeyboardInterrupt


def test_what_was_judged_on_other_data_is_no_longer_kept(survey, tmp_path):
    data = tmp_path / "graphs"
    data.mkdir()
    (data / "samples.jsonl").write_text("one\n")
    args = argparse.Namespace(runs=tmp_path, data=tmp_path)
    folder = survey._folder("graph as rows", 0, args)
    folder.mkdir()
    scores = {"seed": 0, "data_sha256": survey.lines_sha256(data)}
    (folder / "scores.json").write_text(json.dumps(scores))
    assert survey._is_kept("graph as rows", 0, args) and survey._everything(args) == {"graph as rows": [scores]}
    (data / "samples.jsonl").write_text("another\n")
    assert not survey._is_kept("graph as rows", 0, args) and survey._everything(args) == {}


def test_a_stage_goes_on_where_it_was_killed_and_all_its_core_seconds_count(survey, tmp_path, monkeypatch):
    recipe = ReadRecipe(data="shapes", output=str(tmp_path / "run"), steps=30)
    training = Stage(stops=1)
    monkeypatch.setattr("edgemm.train.run.train", training)
    with pytest.raises(KeyboardInterrupt):
        survey._stage(recipe, "these settings")
    taken = survey._stage(recipe, "these settings")
    assert 1000 < taken["core_s"] < 1100 and training.began == [False, True]
    assert survey._stage(recipe, "these settings") == taken and len(training.began) == 2  # it is done
    assert survey._stage(recipe, "other settings")["core_s"] < 100 and training.began[2:] == [False]


def test_rows_of_one_model_share_the_eye_they_begin_with_and_others_have_their_own(survey, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(survey, "_stage", lambda recipe, told: stages.append(recipe) or {"core_s": 2.0, "rss_mb": 1.0})
    args = argparse.Namespace(runs=tmp_path, data=tmp_path / "shapes", batch=8)

    def eye(name, seed=0, steps=30):
        row, first = survey.ROWS[name], len(stages)
        taken = survey._train(row, survey._config(row.designs), tmp_path / name, seed, steps, args)
        assert 4 < taken["core_s"] < 100  # an eye's count, whoever taught it
        assert stages[-1].start == str(Path(stages[first].output) / "checkpoint")
        assert stages[-1].output == str(tmp_path / name)
        return stages[first].output

    alone = eye("reading alone")
    assert alone == eye("joint") == eye("one frame read")
    others = [eye("joint, dense"), eye("4 experts, top 2"), eye("joint", seed=1), eye("joint", steps=40)]
    build_graphs(tmp_path / "graphs", 64, 8, 0)
    others.append(eye("graph as text"))  # the same model, but for its tokenizer
    assert len({alone, *others}) == 6
