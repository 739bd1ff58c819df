"""Other people's pictures in the layouts they come in, as one dataset that can be read back."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemm.data.collect import build_pictures, imported
from edgemm.data.format import Dataset, read_dataset
from edgemm.data.writer import new_folder
from edgemm.errors import InputError
from edgemm.progress import Display
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


def test_some_of_a_folder_are_of_all_its_kinds_and_of_shards_the_first_which_is_told(tmp_path, capsys):
    """The first thirty of three hundred in three folders are cats."""
    for kind in ("cat", "dog", "owl"):
        for number in range(100):
            picture(tmp_path / "in" / kind / f"{number}.png", "red")
    dataset = build(tmp_path / "in", tmp_path / "set", limit=30)
    kinds = Counter(sample.label for sample in dataset.samples)
    # By chance one kind has three or fewer of thirty once in a hundred times; the lot is the same at every run.
    assert sum(kinds.values()) == 30 and min(kinds[kind] for kind in ("cat", "dog", "owl")) > 3
    again = build(tmp_path / "in", tmp_path / "again", limit=30)
    assert [sample.label for sample in again.samples] == [sample.label for sample in dataset.samples]
    shard = tar(tmp_path / "x.tar", {"1.png": png("red"), "1.txt": b"a", "2.png": png("red"), "2.txt": b"b"})
    with Display():
        assert build(shard, tmp_path / "one", limit=1).samples[0].label == "a"
    assert "the first 1 in its order" in capsys.readouterr().err


def test_a_saved_hugging_face_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (8, 8), "red")], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "in")
    assert [sample.label for sample in build(tmp_path / "in", tmp_path / "set").samples] == ["dog"]


def metadata(folder: Path, **row) -> None:
    picture(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps(row))


def latin(folder: Path, name: str, text: str) -> None:
    picture(folder / "a.png")
    (folder / name).write_bytes(text.encode("latin-1"))


def deep(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"text": ' + "[" * 200_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no folder and no .tar"),
        (lambda folder: folder.mkdir(), "no pictures in it"),
        (lambda folder: picture(folder / "a.png"), r"a.png: no words; expected metadata.jsonl"),
        (lambda folder: metadata(folder, file_name="../../etc/x.png", text="x"), "leaves the folder"),
        (
            lambda folder: metadata(folder, file_name="none.png", text="x"),
            "none.png: cannot be read.*; --skip-broken leaves",
        ),
        (lambda folder: metadata(folder, text="x"), "line 1: file_name is None among text, expected a path"),
        (lambda folder: metadata(folder, file_name="a\0.png", text="x"), r"file_name is 'a\\x00.png', expected a path"),
        (
            lambda folder: metadata(folder, file_name="a.png", text="\ud83d"),
            r"line 1: half of a surrogate pair, '\\ud83d'",
        ),
        (lambda folder: metadata(folder, file_name="a.png", questions=[["[" * 9, "\udc00"]]), "half of a surrogate"),
        (
            lambda folder: latin(folder, "metadata.csv", "file_name,text\na.png,red, green\n"),
            r"metadata\.csv, row 2: 3 cells under 2 names; put a text with ',' in it in quotes",
        ),
        (
            lambda folder: latin(folder, "metadata.csv", 'file_name,text\na.png,"red\nb.png,green\n'),
            r"metadata\.csv: not CSV: unexpected end of data",
        ),
        (
            lambda folder: (metadata(folder, file_name="a.png", text="x"), latin(folder, "metadata.csv", "")),
            "holds metadata.csv and metadata.jsonl, expected one of them",
        ),
        (lambda folder: latin(folder, "metadata.csv", "file_name,text\na.png,Käse\n"), "metadata.csv: not UTF-8 .* 22"),
        (lambda folder: latin(folder, "metadata.jsonl", '{"text": "Käse"}'), "metadata.jsonl: not UTF-8"),
        (lambda folder: latin(folder, "a.txt", "Käse"), "a.txt: not UTF-8 .*; save it as UTF-8"),
        (lambda folder: (folder.mkdir(), os.mkfifo(folder / "metadata.jsonl")), "metadata.jsonl: not a file"),
        (lambda folder: (folder.mkdir(), os.mkfifo(folder / "a.tar")), "a.tar: not a file; expected a tar"),
        (
            lambda folder: (metadata(folder, file_name="b.png", text="x"), (folder / "b.png").symlink_to("b.png")),
            "b.png",
        ),
        (lambda folder: picture(folder / os.fsdecode(b"k\xe4se") / "a.png"), "its folder's name: not UTF-8"),
        (lambda folder: metadata(folder, **{"file_name": "a.png", "text": "x"}) or deep(folder), "line 1: not JSON"),
        (lambda folder: metadata(folder, file_name="a.png"), "line 1: no words"),
        (lambda folder: metadata(folder, file_name="a.png", text={}), "text is a dict, expected text"),
        (lambda folder: metadata(folder, file_name="a.png", text="x" * 1001), "has 1001 characters"),
        (lambda folder: metadata(folder, file_name="a.png", text="x", split="odd"), "split is 'odd'"),
        (lambda folder: metadata(folder, file_name="a.png", text="x", style=["y"] * 900), "style has 1799 characters"),
        (lambda folder: metadata(folder, file_name="a.png", text="x", style="\0"), "style holds a NUL character"),
        (
            lambda folder: metadata(folder, file_name="a.png", text="x", group={"a": 1}),
            "group is a dict, expected text",
        ),
        (lambda folder: metadata(folder, file_name="a.png", label=["y"] * 900), "label has 1799 characters"),
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


@pytest.mark.parametrize("end", [",", ";", "\t"])
def test_what_excel_and_macos_leave_is_read_as_it_was_meant(tmp_path, end):
    picture(tmp_path / "in" / "a.png")
    rows = f"file_name{end}text\r\na.png{end}Käse\r\n"
    (tmp_path / "in" / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert build(tmp_path / "in", tmp_path / "set").samples[0].captions == ("Käse",)


def test_a_mark_in_front_of_words_and_files_that_begin_with_a_dot_are_passed_over(tmp_path):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").write_bytes(b"\xef\xbb\xbfa cat")
    (tmp_path / "in" / "._a.png").write_bytes(b"\x00\x05\x16\x07 of macOS")
    picture(tmp_path / "lines" / "b.png")
    (tmp_path / "lines" / "metadata.jsonl").write_text('\ufeff{"file_name": "b.png", "text": "a\u2028dog"}\n')
    assert [sample.label for sample in build(tmp_path / "in", tmp_path / "set").samples] == ["a cat"]
    assert [sample.label for sample in build(tmp_path / "lines", tmp_path / "other").samples] == ["a dog"]


def test_folders_that_begin_with_a_dot_are_passed_over_with_all_that_is_in_them(tmp_path):
    picture(tmp_path / "in" / "cats" / "a.png")
    for hidden in (".ipynb_checkpoints", "cats/.thumbnails"):
        picture(tmp_path / "in" / hidden / "a.png")
        (tmp_path / "in" / hidden / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a copy"}')
        tar(tmp_path / "in" / hidden / "1.tar", {"1.png": png("red"), "1.txt": b"a shard"})
    assert [sample.label for sample in build(tmp_path / "in", tmp_path / "set").samples] == ["cats"]
    inside_one = tmp_path / ".mine" / "cats"
    picture(inside_one / "a.png")
    assert len(build(inside_one.parent, tmp_path / "other").samples) == 1  # where the source lies does not matter


def test_a_split_is_said_by_folders_and_shards_and_by_no_pictures_name(tmp_path):
    for name in ("test-tube.png", "val-1.png", "dev.png"):
        picture(tmp_path / "in" / "glass" / name)
    picture(tmp_path / "in" / "Test" / "glass" / "train-9.png")
    splits = [sample.split for sample in build(tmp_path / "in", tmp_path / "set").samples]
    assert sorted(splits) == ["test", "train", "train", "train"]


def test_a_table_above_the_folders_of_splits_withholds_what_lies_in_test(tmp_path):
    rows = [
        {"file_name": "train/a.png", "text": "a"},
        {"file_name": "test/deep/b.png", "text": "b"},
        {"file_name": "test/c.png", "text": "c", "split": "train"},
        {"file_name": "validation/d.png", "text": "d", "split": None},
    ]
    for row in rows:
        picture(tmp_path / "in" / row["file_name"])
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = build(tmp_path / "in", tmp_path / "set")
    splits = {sample.label: sample.split for sample in dataset.samples}
    assert splits == {"a": "train", "b": "test", "c": "train", "d": "test"}


def test_words_beside_a_picture_are_found_however_their_ending_is_written(tmp_path):
    picture(tmp_path / "in" / "holiday" / "IMG_1.JPG")
    (tmp_path / "in" / "holiday" / "IMG_1.TXT").write_text("a boat")
    assert [sample.label for sample in build(tmp_path / "in", tmp_path / "set").samples] == ["a boat"]


def test_what_is_null_is_as_if_it_were_not_there(tmp_path):
    nothing = dict.fromkeys(("label", "caption", "style", "group", "family", "tags", "questions", "kind", "choices"))
    metadata(tmp_path / "in", file_name="a.png", text="a flag", question="Red?", answer="yes", **nothing)
    dataset = build(tmp_path / "in", tmp_path / "set")
    sample = dataset.samples[0]
    found = (sample.style, sample.group, sample.family, sample.tags)
    assert found == ("pictures", "pictures", "a flag", ())
    assert {question.kind for question in dataset.questions} == {"caption", "question"}


def test_a_question_of_its_own_and_a_list_of_them_are_all_asked(tmp_path):
    more = [{"question": "How many?", "answer": "one"}]
    metadata(tmp_path / "in", file_name="a.png", text="a flag", question="Red?", answer="yes", questions=more)
    asked = {question.question for question in build(tmp_path / "in", tmp_path / "set").questions}
    assert asked == {"Describe the picture.", "Red?", "How many?"}


@pytest.mark.parametrize("style", ["..", ".", " / ", "a/../b"])
def test_a_style_is_a_folder_inside_the_dataset(tmp_path, style):
    metadata(tmp_path / "in", file_name="a.png", text="a flag", style=style)
    dataset = build(tmp_path / "in", tmp_path / "set")  # reads it back
    inside = (tmp_path / "set" / "images").resolve()
    assert dataset.image_path(dataset.samples[0]).resolve().is_relative_to(inside)


def test_pictures_that_are_left_out_are_told(tmp_path, capsys):
    metadata(tmp_path / "in", file_name="a.png", text="a flag")
    picture(tmp_path / "in" / "test" / "b.png")
    (tmp_path / "in" / "c.HEIC").write_bytes(b"of a telephone")
    assert run("pictures", "--source", tmp_path / "in", "--output", tmp_path / "set") == 0
    told = capsys.readouterr().err
    assert "left out 1 .png: no metadata.jsonl or .csv names them; the first: test/b.png" in told
    assert "left out 1 .heic: not read; save them as PNG or JPEG; the first: c.HEIC" in told


def test_broken_pictures_are_left_out_when_asked_and_counted(tmp_path, capsys):
    for name in ("1.png", "3.png"):
        picture(tmp_path / "in" / "cats" / name)
    (tmp_path / "in" / "cats" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["pictures", "--source", tmp_path / "in", "--output", tmp_path / "set"]
    with pytest.raises(InputError, match=r"2.png: .*; --skip-broken leaves such pictures out"):
        run(*words)
    assert run(*words, "--skip-broken") == 0
    out = capsys.readouterr().out
    assert "Wrote 2 pictures" in out and f"(1 broken ones were left out, the first: {tmp_path / 'in/cats/2.png'}" in out
    dataset = read_dataset(tmp_path / "set")
    assert [sample.id for sample in dataset.samples] == ["pictures/00000000", "pictures/00000001"]
    assert len(dataset.questions) == 2
    (tmp_path / "in" / "cats" / "1.png").unlink()
    (tmp_path / "in" / "cats" / "3.png").unlink()
    with pytest.raises(InputError, match="none of its 1 pictures can be read; the first: "):
        run(*words, "--skip-broken", "--force")


def test_a_folder_is_imported_once_and_again_when_it_has_changed(tmp_path):
    picture(tmp_path / "in" / "cats" / "1.png")
    first = imported(tmp_path / "in", 32, tmp_path / "cache")
    kept = (first / "dataset.json").stat().st_mtime_ns
    assert imported(tmp_path / "in", 32, tmp_path / "cache") == first
    assert (first / "dataset.json").stat().st_mtime_ns == kept and read_dataset(first).size == 32
    picture(tmp_path / "in" / "cats" / "2.png")
    second = imported(tmp_path / "in", 32, tmp_path / "cache")
    assert len(read_dataset(second).samples) == 2 and second != first


def test_the_verb_collects_and_says_what_next(tmp_path, capsys):
    picture(tmp_path / "in" / "cats" / "1.png")
    assert run("pictures", "--source", tmp_path / "in", "--output", tmp_path / "set") == 0
    assert "Wrote 1 pictures" in capsys.readouterr().out
