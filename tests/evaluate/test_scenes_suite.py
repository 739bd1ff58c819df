"""Scenes judged by region: real scenes pass, one thing too few and the wrong side do not, and the report says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgemm.data.format import Sample
from edgemm.data.writer import DatasetWriter, new_folder
from edgemm.errors import InputError
from edgemm.evaluate.evaluation import Plan, compared, evaluate_subject
from edgemm.evaluate.report import render
from edgemm.evaluate.scenes_suite import regions

LEFT, RIGHT = (4, 22, 24, 42), (40, 22, 60, 42)


def scene(places: dict[tuple[int, int, int, int], str], style: str = "ours") -> Image.Image:
    """A ring is round and hollow, a block is square and full; artists choose other colours."""
    canvas = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(canvas)
    for (left, top, right, bottom), name in places.items():
        colour = "crimson" if style == "ours" else "firebrick"
        if name == "ring":
            pen.ellipse((left, top, right - 1, bottom - 1), outline=colour, width=4)
        else:
            pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    return canvas


def sample(name: str, style: str, split: str, places, relation=None) -> Sample:
    objects = [
        {"id": at, "name": what, "sample": "", "box": list(box)} for at, (box, what) in enumerate(places.items())
    ]
    held = {"subject": 0, "relation": relation, "object": 1} if relation else None
    facts = {"task": "relation" if relation else "counting", "size": 64, "objects": objects, "relation": held}
    caption = f"{name} caption"
    words = (caption, (), name, "scenes", facts["task"], "", split, (caption,), facts)
    return Sample(f"{style}/{name}", f"images/{style}/{name}.png", style, *words)


def test_what_touches_over_one_pixel_is_one_region():
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[4:20, 4:20] = 0
    picture[4:20, 21:30] = 0  # one white column between them
    picture[40:60, 40:60] = 100
    picture[30, 2] = 0  # a speck
    assert regions(picture) == [(4, 4, 30, 20), (40, 40, 60, 60)]
    assert regions(np.full((64, 64, 3), 250, np.uint8)) == []


RIGHTLY = {
    "beside": {LEFT: "ring", RIGHT: "block"},
    "twice": {LEFT: "block", RIGHT: "block"},
    "rings": {LEFT: "ring", RIGHT: "ring"},
}
ONE_FEWER = {**RIGHTLY, "twice": {LEFT: "block"}}
OTHER_SIDE = {**RIGHTLY, "beside": {LEFT: "block", RIGHT: "ring"}}


def made(goal: Path, *artists: tuple[str, str]) -> Path:
    """Three scenes of each artist, a (style, split)."""
    with new_folder(goal) as folder:
        writer = DatasetWriter(folder, "compose", 64)
        for style, split in artists:
            for name, places in RIGHTLY.items():
                relation = "left of" if name == "beside" else None
                writer.add(sample(name, style, split, places, relation), scene(places, style))
        writer.finish([], [])
    return goal


class Painter:
    """Draws every prompt as it was told to."""

    name, kind, sha256, drawing_size = "painter", "checkpoint", "0" * 64, 64

    def __init__(self, drawn: dict[str, dict]) -> None:
        self.drawn = drawn

    def draw(self, prompts, seeds):
        return np.stack([np.asarray(scene(self.drawn[prompt.split()[0]])) for prompt in prompts])


@pytest.mark.parametrize(("drawn", "right", "counted"), [(RIGHTLY, 3, 3), (ONE_FEWER, 2, 2), (OTHER_SIDE, 2, 3)])
def test_scenes_are_right_where_count_names_and_places_are(tmp_path, monkeypatch, drawn, right, counted):
    monkeypatch.setattr("edgemm.evaluate.scenes_suite.NAMED", 1)  # two names only: the first guess counts
    dataset = made(tmp_path / "scenes", ("ours", "train"), ("twemoji", "scorer"))
    found = evaluate_subject(Painter(drawn), dataset, Plan(suites=("draw",), cache=tmp_path))
    part = found.document["draw"]["scenes"]["train"]
    assert part["real"]["value"] == part["real_count"]["value"] == 1.0
    assert (part["right"]["value"], part["count"]["value"]) == pytest.approx((right / 3, counted / 3), abs=1e-6)
    assert part["shuffled"]["value"] < 1
    assert "Scenes, judged by regions, among 2 names: seen pairs" in render(found.document)


def test_scenes_of_two_models_are_compared_task_by_task(tmp_path, monkeypatch):
    monkeypatch.setattr("edgemm.evaluate.scenes_suite.NAMED", 1)
    dataset = made(tmp_path / "scenes", ("ours", "train"), ("twemoji", "scorer"))
    plan = Plan(suites=("draw",), cache=tmp_path)
    found = compared(*(evaluate_subject(Painter(drawn), dataset, plan) for drawn in (RIGHTLY, ONE_FEWER)))
    differences = found.document["compare"]["differences"]
    assert set(differences) == {"train: relation", "train: counting", "train: all tasks"}
    assert (differences["train: relation"]["value"], differences["train: counting"]["value"]) == (0, -0.5)


def test_a_dataset_with_nothing_to_draw_says_so_before_it_is_read(tmp_path):
    dataset = made(tmp_path / "scenes", ("ours", "held-out-family"), ("twemoji", "scorer"))
    with pytest.raises(InputError, match="nothing to draw in train or held-out-pair"):
        evaluate_subject(Painter(RIGHTLY), dataset, Plan(cache=tmp_path))


def test_without_another_artist_there_is_no_judge(tmp_path):
    dataset = made(tmp_path / "scenes", ("ours", "train"))
    with pytest.raises(InputError, match="nobody is left to train a judge on"):
        evaluate_subject(Painter(RIGHTLY), dataset, Plan(cache=tmp_path))  # before it reads, which a painter cannot
