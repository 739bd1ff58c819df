"""A dataset is whole or not there."""

from __future__ import annotations

import errno

import pytest
from PIL import Image

from edgemm.data.format import read_dataset
from edgemm.data.writer import DatasetWriter, new_folder
from edgemm.errors import InputError, ResourceError, UsageError


def test_what_is_written_can_be_read(tmp_path, make_sample):
    sample = make_sample("noto/cat", scene={"task": "counting", "objects": []})
    with new_folder(tmp_path / "set") as folder:
        writer = DatasetWriter(folder, "emoji", 8)
        writer.add(sample, Image.new("RGB", (8, 8), "red"))
        writer.finish([], [])
    dataset = read_dataset(tmp_path / "set")
    assert dataset.samples == (sample,)
    assert (dataset.kind, dataset.size, dataset.styles) == ("emoji", 8, ("noto",))
    assert [file.name for file in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set").stat().st_mode & 0o777 == 0o755


def test_a_picture_of_the_wrong_size_or_mode_is_refused(tmp_path, make_sample):
    for picture in (Image.new("RGB", (9, 8)), Image.new("RGBA", (8, 8))):
        with pytest.raises(ValueError, match="not RGB 8 x 8"):
            DatasetWriter(tmp_path, "emoji", 8).add(make_sample("noto/cat"), picture)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "set") as folder:
        (folder / "half").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    with pytest.raises(ResourceError, match="is full") as caught, new_folder(tmp_path / "set") as folder:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_only_a_dataset_is_replaced_by_force(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(UsageError, match="is not empty; give another --output, or --force"),
        new_folder(tmp_path / "set"),
    ):
        raise AssertionError("not reached")
    with pytest.raises(InputError, match="holds no dataset"), new_folder(tmp_path / "set", force=True):
        raise AssertionError("not reached")
    (tmp_path / "set" / "thesis.txt").rename(tmp_path / "set" / "dataset.json")
    with pytest.raises(UsageError, match="is not empty"), new_folder(tmp_path / "set"):
        raise AssertionError("not reached")
    with new_folder(tmp_path / "set", force=True) as folder:
        (folder / "new").write_text("x")
    assert [file.name for file in (tmp_path / "set").iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text("x")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "set", force=True):
        raise KeyboardInterrupt
    assert (tmp_path / "set" / "dataset.json").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "set").mkdir()
    with new_folder(tmp_path / "set") as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "set" / "new").is_file()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "set").write_text("x")
    with pytest.raises(UsageError, match="is a file"), new_folder(tmp_path / "set"):
        raise AssertionError("not reached")
