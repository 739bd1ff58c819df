"""Other people's pictures in the layouts they come in, as one dataset that can be read back."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemm.data.collect import build_pictures
from edgemm.data.format import Dataset, read_dataset
from edgemm.data.writer import new_folder
from edgemm.errors import InputError
from tests.data.test_verb import run


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def build(source: Path, goal: Path, limit: int | None = None) -> Dataset:
    with new_folder(goal) as folder:
        build_pictures(folder, 64, source, limit)
    return read_dataset(goal)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_with_metadata_gives_prompts_for_drawing_and_questions_for_reading(tmp_path):
    rows = [
        {"file_name": "a.png", "text": "a  red\nflag", "label": "flag", "question": "Which colour?", "answer": "red"},
        {"file_name": "deep/b.png", "captions": ["blue", "a blue flag"], "style": "my hand"},
    ]
    picture(tmp_path / "in" / "train" / "a.png")
    picture(tmp_path / "in" / "train" / "deep" / "b.png", "blue")
    (tmp_path / "in" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    picture(tmp_path / "in" / "test" / "c.png", "green")
    (tmp_path / "in" / "test" / "metadata.csv").write_text("file_name,text\nc.png,a green flag\n")
    dataset = build(tmp_path / "in", tmp_path / "set")
    by_label = {sample.label: sample for sample in dataset.samples}
    assert by_label["flag"].captions == ("a red flag",)
    assert by_label["blue"].captions == ("blue", "a blue flag")
    assert by_label["blue"].style == "my-hand"
    assert {sample.label: sample.split for sample in dataset.samples}["a green flag"] == "test"
    asked = {(q.kind, q.question, q.answer) for q in dataset.questions if q.sample == by_label["flag"].id}
    assert asked == {
        ("label", "What is this?", "flag"),
        ("caption", "Describe the picture.", "a red flag"),
        ("question", "Which colour?", "red"),
    }
    pixels = np.asarray(Image.open(dataset.image_path(by_label["flag"])))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[32, 32] == (255, 0, 0)).all() and (pixels[4, 32] == 255).all()  # whole, on white
    assert "keep the terms" in (tmp_path / "set" / "NOTICE").read_text()


def test_words_beside_a_picture_and_names_of_folders_will_do(tmp_path):
    picture(tmp_path / "in" / "one.jpg")
    (tmp_path / "in" / "one.txt").write_text("something red")
    picture(tmp_path / "in" / "big_cats" / "two.webp")
    dataset = build(tmp_path / "in", tmp_path / "set")
    assert sorted(sample.label for sample in dataset.samples) == ["big cats", "something red"]


def test_webdataset_shards_are_read_as_a_stream(tmp_path):
    (tmp_path / "in").mkdir()
    about = json.dumps({"label": "stop", "questions": [{"question": "Go?", "answer": "no", "choices": ["yes", "no"]}]})
    members = {"x/1.png": png("red"), "x/1.txt": b"a red light", "x/1.json": about.encode()}
    tar(tmp_path / "in" / "train-000.tar", members)
    tar(tmp_path / "in" / "val-000.tar", {"2.cls": b"go", "2.png": png("green")})
    dataset = build(tmp_path / "in", tmp_path / "set")
    assert [(s.label, s.captions, s.split) for s in dataset.samples] == [
        ("stop", ("a red light",), "train"),
        ("go", ("go",), "test"),
    ]
    assert {q.choices for q in dataset.questions if q.kind == "question"} == {("yes", "no")}
    assert len(build(tmp_path / "in", tmp_path / "short", limit=1).samples) == 1


def test_a_saved_hugging_face_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (8, 8), "red")], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "in")
    assert [sample.label for sample in build(tmp_path / "in", tmp_path / "set").samples] == ["dog"]


def metadata(folder: Path, **row) -> None:
    picture(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps(row))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no folder and no .tar"),
        (lambda folder: folder.mkdir(), "no pictures in it"),
        (lambda folder: picture(folder / "a.png"), r"a.png: no words; expected metadata.jsonl"),
        (lambda folder: metadata(folder, file_name="../../etc/x.png", text="x"), "leaves the folder"),
        (lambda folder: metadata(folder, file_name="none.png", text="x"), "none.png: cannot be read"),
        (lambda folder: metadata(folder, text="x"), "line 1: file_name is None"),
        (lambda folder: metadata(folder, file_name="a.png"), "line 1: no words"),
        (lambda folder: metadata(folder, file_name="a.png", text={}), "text is a dict, expected text"),
        (lambda folder: metadata(folder, file_name="a.png", text="x" * 1001), "has 1001 characters"),
        (lambda folder: metadata(folder, file_name="a.png", text="x", split="odd"), "split is 'odd'"),
        (lambda folder: metadata(folder, file_name="a.png", text="x", question="?"), "needs question and answer"),
        (lambda folder: (folder.mkdir(), (folder / "a.tar").write_bytes(b"x" * 600)), "a.tar: not a whole tar"),
        (lambda folder: (folder.mkdir(), tar(folder / "a.tar", {"1.txt": b"x"})), "1 has no picture"),
        (lambda folder: (folder.mkdir(), tar(folder / "a.tar", {"1.png": b"x", "1.txt": b"x"})), "not a picture"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_name_and_leaves_nothing(tmp_path, make, message):
    make(tmp_path / "in")
    with pytest.raises(InputError, match=message):
        build(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_verb_collects_and_says_what_next(tmp_path, capsys):
    picture(tmp_path / "in" / "cats" / "1.png")
    assert run("pictures", "--source", tmp_path / "in", "--output", tmp_path / "set") == 0
    assert "Wrote 1 pictures" in capsys.readouterr().out
