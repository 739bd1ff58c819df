"""The checker of icons: real pictures pass, other colours fail, and the evaluation says both."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgemm.data.format import Sample
from edgemm.data.icons import ANCHORS
from edgemm.data.writer import DatasetWriter, new_folder
from edgemm.evaluate.evaluation import Plan, evaluate_subject
from edgemm.evaluate.icons_suite import Seen, check_colours, see_icon
from edgemm.evaluate.report import render
from edgemm.evaluate.subject import Drawings


def ring(colour: str, ground: str, size: int = 64) -> Image.Image:
    """Drawn four times as large and made smaller, so that its edges mix both colours."""
    canvas = Image.new("RGB", (size * 4, size * 4), ANCHORS[ground][0])
    ImageDraw.Draw(canvas).ellipse((40, 40, 210, 210), outline=ANCHORS[colour][0], width=16)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("colour", "ground"), [("red", "white"), ("white", "black"), ("blue", "yellow"), ("brown", "pink")]
)
def test_a_thin_ring_has_its_colour_and_its_ground(colour, ground):
    assert see_icon(np.asarray(ring(colour, ground))) == Seen(colour, ground)


def test_an_empty_canvas_shows_no_thing():
    assert see_icon(np.full((32, 32, 3), 250, np.uint8)) == Seen(None, "white")


@pytest.fixture
def rings(tmp_path):
    """Rings of two artists: one is trained on, the other teaches the judge."""
    goal = tmp_path / "rings"
    with new_folder(goal) as folder:
        writer = DatasetWriter(folder, "icons", 64)
        for style, split in (("ours", "train"), ("theirs", "scorer")):
            for colour in ("red", "green", "blue", "purple", "orange", "black"):
                name = f"{style}/{colour}"
                scene = {"task": "icon", "colour": colour, "ground": "white", "way": "outlined"}
                caption = f"a {colour} outlined ring on white"
                words = ("ring", (), "ring", "icons", "outlined", "", split, (caption,), scene)
                writer.add(Sample(name, f"images/{name}.png", style, *words), ring(colour, "white"))
        writer.finish([], [])
    return goal


class Copyist:
    """Draws what was asked, or, colour-blind, everything in red."""

    name, kind, sha256, drawing_size = "copyist", "checkpoint", "0" * 64, 64

    def __init__(self, blind: bool) -> None:
        self.blind = blind

    def draw(self, prompts, seeds):
        return np.stack([np.asarray(ring("red" if self.blind else prompt.split()[1], "white")) for prompt in prompts])


@pytest.mark.parametrize(("blind", "right"), [(False, 6), (True, 1)])
def test_the_evaluation_counts_colours_of_drawings_and_of_real_pictures(rings, tmp_path, blind, right):
    found = evaluate_subject(Copyist(blind), rings, Plan(suites=("draw",), cache=tmp_path))
    part = found.document["draw"]["icons"]["train"]
    assert (part["colour"]["value"], part["real_colour"]["value"]) == (pytest.approx(right / 6, abs=1e-6), 1.0)
    assert part["ground"]["value"] == part["real_ground"]["value"] == 1.0
    assert "checked for what was asked: seen pairs" in render(found.document)


def disc(colour: str) -> Image.Image:
    canvas = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(canvas).ellipse((8, 8, 56, 56), fill=ANCHORS[colour][0])
    return canvas


@pytest.mark.parametrize(("shown", "right"), [(("red", "blue"), 1.0), (("red", "red"), 0.5)])
def test_withheld_colours_of_emoji_are_counted(shown, right):
    scenes = [{"colour": colour, "ground": "white"} for colour in ("red", "blue")]
    samples = tuple(
        Sample(f"ours/{row}", "", "ours", "ball", (), "ball", "activities", "", "", "held-out-colour", ("",), scene)
        for row, scene in enumerate(scenes)
    )
    pictures = np.stack([np.asarray(disc(colour)) for colour in shown])
    real = np.stack([np.asarray(disc(scene["colour"])) for scene in scenes])
    named, real_named = np.array([True, False]), np.array([True, True])
    part = check_colours(Drawings(samples, ("", ""), (0, 1), pictures, real), named, real_named)
    assert (part.colour.value, part.both.value) == (right, 0.5)
    assert part.real_colour.value == part.real_both.value == 1.0
