"""Edit pairs: what the instruction names has changed, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edgemm.data.edits import build_edits
from edgemm.data.format import Sample, read_dataset
from edgemm.data.writer import DatasetWriter, new_folder
from edgemm.errors import InputError
from edgemm.evaluate.shapes_checker import check_scene
from tests.data.conftest import FIXTURE
from tests.data.test_verb import digest, run


def build(goal, source=None, count=60, styles=("fluent", "noto", "noto-v1")):
    with new_folder(goal) as folder:
        build_edits(folder, 64, count, 0, source, styles)
    return read_dataset(goal)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return build(tmp_path_factory.mktemp("edits") / "shapes")


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return build(tmp_path_factory.mktemp("edits") / "emoji", FIXTURE)


def pixels(dataset, sample) -> np.ndarray:
    return np.asarray(Image.open(dataset.image_path(sample)), dtype=np.int16)


def pairs(dataset, kind: str):
    by_id = {sample.id: sample for sample in dataset.samples}
    return [(by_id[edit.source], edit, by_id[edit.target]) for edit in dataset.edits if edit.kind == kind]


def test_edited_shapes_are_what_the_checker_finds_and_the_rest_keeps_its_pixels(shapes):
    for kind in ("colour", "add"):
        assert len(pairs(shapes, kind)) == 30
        for before, edit, after in pairs(shapes, kind):
            one, other = pixels(shapes, before), pixels(shapes, after)
            assert check_scene(other.astype(np.uint8), after.scene).passed
            assert not check_scene(one.astype(np.uint8), after.scene).passed, edit.instruction
            changed = np.argwhere((one != other).any(-1))
            item = next(item for item in after.scene["objects"] if item["name"] in edit.instruction)
            left, top, right, bottom = item["box"]
            assert (changed >= (top, left)).all() and (changed < (bottom, right)).all()
            assert item["colour"] in edit.instruction


def test_a_pair_with_something_withheld_is_not_for_training(shapes):
    splits = {sample.id: sample.split for sample in shapes.samples}
    assert {edit.split for edit in shapes.edits} == {"train", "held-out-pair"}
    for edit in shapes.edits:
        assert (edit.split == "train") == ({splits[edit.source], splits[edit.target]} == {"train"})


def test_emoji_change_their_artist_their_colour_or_get_company(emoji):
    for before, edit, after in pairs(emoji, "style"):
        assert before.hexcode == after.hexcode and before.style != after.style
        assert edit.instruction == f"draw it in {after.style} style"
    for before, edit, after in pairs(emoji, "colour"):
        assert before.style == after.style and before.label.split()[1:] == after.label.split()[1:]
        assert edit.instruction == f"make it {after.label.split()[0]}" and before.label != after.label
    for before, edit, after in pairs(emoji, "add"):
        assert after.label.startswith(before.label + " and ") and edit.instruction[4:] in after.label
        left, top, right, bottom = before.scene["objects"][0]["box"]
        assert (pixels(emoji, before) == pixels(emoji, after))[top:bottom, left:right].all()
    assert {edit.kind for edit in emoji.edits} >= {"style", "add"}
    assert all(before.split == after.split for before, _, after in pairs(emoji, "style"))
    assert (emoji.path / "LICENSES").is_dir()


def drawn(goal, kind, *things):
    """A dataset of (name in the set, style, code, label, colour, way) on white."""
    with new_folder(goal) as folder:
        writer = DatasetWriter(folder, kind, 64)
        for name, style, code, label, colour, way in things:
            scene = {"colour": colour, "ground": "white"} if colour else None
            where = (f"{style}/{name}", f"images/{style}/{name}.png", style)
            sample = Sample(*where, label, (), label, "animals-nature", way, code, "train", (label,), scene)
            writer.add(sample, Image.new("RGB", (64, 64), colour or "gray"))
        writer.finish([], [])
    return goal


def test_what_is_drawn_in_another_style_keeps_its_colour(tmp_path):
    """Copies of `edgemm data emoji --hues` share their drawing's code."""
    things = [
        (f"1f697{colour}", style, "1f697", "car", colour, "transport")
        for style in ("fluent", "noto")
        for colour in (None, "red", "blue")
    ]
    dataset = build(tmp_path / "set", drawn(tmp_path / "in", "emoji", *things), styles=("fluent", "noto"))
    styles = pairs(dataset, "style")
    assert styles and all(before.style != after.style for before, _, after in styles)
    assert all(before.label == after.label for before, _, after in styles)


def test_an_icon_in_another_style_is_the_same_icon(tmp_path):
    """Icons have no code: a bicycle is no car in another style, and no outline is filled where a colour changes."""
    things = [
        ("car-1", "lucide", "", "car", "red", "outlined"),
        ("car-2", "tabler", "", "car", "red", "outlined"),
        ("bike", "tabler", "", "bicycle", "red", "outlined"),
        ("car-3", "tabler", "", "car", "blue", "filled"),
        ("car-4", "tabler", "", "car", "green", "outlined"),
    ]
    dataset = build(tmp_path / "set", drawn(tmp_path / "in", "icons", *things))
    assert {(one.label, other.label) for one, _, other in pairs(dataset, "style")} == {("red car", "red car")}
    found = {frozenset((one.label, other.label)) for one, _, other in pairs(dataset, "colour")}
    assert found == {frozenset(("red car", "green car"))}


def test_emoji_of_one_kind_alone_are_refused_and_not_tried_for_ever(tmp_path):
    things = [(str(number), "fluent", str(number), "car", None, "transport") for number in range(5)]
    with pytest.raises(InputError, match="5 emoji make no pair"):
        build(tmp_path / "set", drawn(tmp_path / "in", "emoji", *things))


def test_the_verb_writes_the_same_bytes_for_the_same_seed(tmp_path):
    for name in ("a", "b"):
        assert run("edits", "--output", tmp_path / name, "--count", "6") == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_an_edit_of_a_picture_that_is_not_there_is_refused(shapes, tmp_path):
    with new_folder(tmp_path / "set") as folder:
        build_edits(folder, 64, 2, 0, None, ())
    file = tmp_path / "set" / "edits.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(json.dumps({**json.loads(lines[0]), "target": "shapes/none"}) + "\n")
    with pytest.raises(InputError, match="to 'shapes/none', which are 'train' and 'not there'"):
        read_dataset(tmp_path / "set")
