"""Reading a dataset: the shipped subset is whole, and whatever is wrong is said in one line."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from PIL import Image

from edgemm.data.format import Question, Sample, dump_line, read_dataset
from edgemm.data.sources import PACKAGES
from edgemm.errors import InputError


@pytest.fixture
def copy(emoji64, tmp_path):
    """The shipped subset without its pictures, to break."""
    folder = tmp_path / "set"
    shutil.copytree(emoji64.path, folder, ignore=shutil.ignore_patterns("images"))
    return folder


def test_shipped_subset_holds_the_pictures_it_lists(emoji64):
    assert len(emoji64.samples) == 256
    for sample in emoji64.samples:
        with Image.open(emoji64.image_path(sample)) as picture:
            assert picture.mode == "RGB" and picture.size == (64, 64)
    files = {str(file.relative_to(emoji64.path)) for file in (emoji64.path / "images").rglob("*.png")}
    assert files == {sample.image for sample in emoji64.samples}


def test_shipped_subset_is_small_and_of_free_licences(emoji64):
    assert sum(file.stat().st_size for file in emoji64.path.rglob("*") if file.is_file()) < 1_000_000
    assert {source.licence for source in emoji64.sources} == {"MIT", "Apache-2.0"}
    assert "twemoji" not in emoji64.styles
    notice = (emoji64.path / "NOTICE").read_text()
    for source in emoji64.sources:
        assert f"{source.package} {source.version}" in notice
    texts = {file.name for file in (emoji64.path / "LICENSES").iterdir()}
    named = {package.licence_file for package in PACKAGES.values()}
    assert texts == {text for text in named if text in notice}


def test_shipped_subset_has_every_split_and_the_common_things(emoji64):
    assert {sample.split for sample in emoji64.samples} == {
        "train", "held-out-style", "held-out-family", "held-out-pair",
    }  # fmt: skip
    labels = Counter(sample.label for sample in emoji64.samples)
    for label in ("dog face", "cat face", "duck", "red heart", "red apple", "pizza", "rocket", "automobile", "star"):
        assert labels[label] >= 2, label


def test_lines_read_back_as_they_were_written(emoji64, make_sample):
    assert (emoji64.path / "samples.jsonl").read_text("utf-8") == "".join(map(dump_line, emoji64.samples))
    assert (emoji64.path / "questions.jsonl").read_text("utf-8") == "".join(map(dump_line, emoji64.questions))
    scene = make_sample("a/b", scene={"task": "counting", "objects": [{"box": [0, 1, 2, 3]}]})
    assert json.loads(dump_line(scene))["scene"] == scene.scene


def test_split_picks_by_name(emoji64):
    assert len(emoji64.split("train")) + len(emoji64.split("held-out-pair")) == len(
        emoji64.split("train", "held-out-pair")
    )


def test_missing_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="edgemm data emoji --output"):
        read_dataset(tmp_path / "nowhere")


def test_a_folder_of_pictures_is_not_a_dataset(emoji64):
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        read_dataset(emoji64.path / "images")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dataset.json", '"schema_version": 1', '"schema_version": 9', "schema_version 9, this edgemm reads 1"),
        ("dataset.json", '"schema_version": 1', "nonsense", "is not JSON"),
        ("dataset.json", '"size": 64', '"sise": 64', "'size'"),
        ("dataset.json", '"train": 148', '"train": 150', "256 samples, dataset.json says 258"),
        ("samples.jsonl", '"style":"fluent"', '"stile":"fluent"', r"samples.jsonl, line 1: expected the fields"),
        ("samples.jsonl", '"split":"train"', '"split":"trian"', "'trian'.*is not one of"),
        ("samples.jsonl", '"image":"images/', '"image":"../', "is no path below the dataset's folder"),
        ("samples.jsonl", '"style":"fluent"', '"style":["fluent"]', r"line 1: style is \['fluent'\], of another type"),
        ("samples.jsonl", '"tags":[', '"tags":[7,', r"line 1: tags is \[7, "),
        (
            "samples.jsonl",
            '"captions":["',
            '"captions":["' + "x" * 4000,
            "captions has a text of more",
        ),
        ("questions.jsonl", '"sample":"fluent/', '"sample":"flowing/', "'flowing/.*not there"),
        ("questions.jsonl", '"answer":"yes"', '"answer":"maybe"', "'maybe' is not among"),
    ],
)
def test_a_broken_line_is_named(copy, file, old, new, message):
    text = (copy / file).read_text("utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(InputError, match=message):
        read_dataset(copy)


def test_a_missing_table_is_named(copy):
    (copy / "questions.jsonl").unlink()
    with pytest.raises(InputError, match=r"questions\.jsonl is missing"):
        read_dataset(copy)


def test_an_answer_is_among_its_choices():
    with pytest.raises(ValueError, match="not among the choices"):
        Question("a/b", "colour", "What colour is this?", "red", ("blue", "green"), "train")


def test_a_sample_has_a_known_split(make_sample):
    assert isinstance(make_sample("a/b"), Sample)
    with pytest.raises(ValueError, match="is not one of train"):
        make_sample("a/b", split="exam")
