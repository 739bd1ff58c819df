"""A folder is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.bundle.files import is_disk_full
from edgemm.bundle.writer import telling_name, whole_folder
from edgemm.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def old(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").write_text("x")
    return tmp_path / "set"


def left(folder: Path) -> list[str]:
    """What lies around, temporary folders included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_folder_gets_its_name_when_the_block_ends_and_can_be_read_by_others(tmp_path):
    with whole_folder(tmp_path / "runs" / "set") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "new").write_text("x")
        (folder / "part" / "new").chmod(0o600)  # as safetensors writes them
        assert not (tmp_path / "runs" / "set").exists()
    assert left(tmp_path) == ["runs", "runs/set", "runs/set/part", "runs/set/part/new"]
    assert (tmp_path / "runs" / "set").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "runs" / "set" / "part" / "new").stat().st_mode & 0o777 == 0o644


def test_an_old_folder_stands_until_the_new_one_is_whole(old):
    with whole_folder(old) as folder:
        (folder / "new").write_text("x")
        assert (old / "old").is_file()
    assert left(old.parent) == ["set", "set/new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_goes_wrong_leaves_the_old_folder_and_nothing_else(old, error):
    with pytest.raises(error), whole_folder(old) as folder:
        (folder / "new").write_text("x")
        raise error
    assert left(old.parent) == ["set", "set/old"]


@pytest.mark.parametrize("failing", ["first", "second"])
def test_a_rename_that_fails_puts_the_old_folder_back(old, monkeypatch, failing):
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".partial") if failing == "second" else str(target).endswith(".old"):
            raise PermissionError(13, "no", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError), whole_folder(old) as folder:
        (folder / "new").write_text("x")
    assert left(old.parent) == ["set", "set/old"]


def test_a_caller_says_what_may_be_replaced_before_the_work_and_after_it(old):
    def keep_notes(path: Path) -> None:
        if (path / "notes").exists():
            raise InputError(f"{path}: holds notes")

    with pytest.raises(InputError, match="holds notes"), whole_folder(old, keep_notes):
        (old / "notes").write_text("written while the work was done")
    assert left(old.parent) == ["set", "set/notes", "set/old"]
    with pytest.raises(InputError, match="holds notes"), whole_folder(old, keep_notes):
        raise AssertionError("not reached")


def test_links_and_files_are_never_replaced(old):
    (old.parent / "link").symlink_to(old)
    for path in (old.parent / "link", old / "old"):
        with pytest.raises(InputError, match="exists and is no folder, so it will not be replaced"), whole_folder(path):
            raise AssertionError("not reached")
    assert left(old.parent) == ["link", "set", "set/old"]


def test_a_kill_leaves_the_old_folder_whole(old):
    code = (
        "import time; from edgemm.bundle.writer import whole_folder\n"
        f"with whole_folder({str(old)!r}) as folder:\n"
        "    (folder / 'new').write_text('x'); print('writing', flush=True); time.sleep(100_000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)
    assert (old / "old").is_file() and not (old / "new").exists()
    (partial,) = (path.name for path in old.parent.iterdir() if path != old)
    assert partial.startswith(".set.") and partial.endswith(".partial"), "hidden, and it says whose it is"
    with whole_folder(old) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in old.iterdir()] == ["new"], "and is in nobody's way"


def test_a_disk_that_is_really_full_leaves_the_old_folder(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        (disk / "set").mkdir()
        with pytest.raises(OSError) as caught, whole_folder(disk / "set") as folder:
            (folder / "large").write_bytes(bytes(1_000_000))
        assert is_disk_full(caught.value) and left(disk) == ["set"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/style/checkpoint", "style"),
        ("runs/both/draw/checkpoint", "both-draw"),
        ("checkpoints/sticker-small", "sticker-small"),
        ("runs/style/merged", "merged"),
        ("/checkpoint", "checkpoint"),
    ],
)
def test_a_checkpoint_is_told_by_the_nearest_name_that_tells(folder, name):
    assert telling_name(Path(folder)) == name
