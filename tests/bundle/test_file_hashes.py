"""Hashes that are computed beside other work are right, are computed once, and end with their owner."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from edgemm.bundle import held_file as file_hashes
from edgemm.bundle.held_file import LARGE_BYTES, FileHashes
from edgemm.errors import BundleError

OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(("content", "known"), [(b"abc", OF_ABC), (b"", OF_NOTHING)])
def test_a_hash_is_the_standards_and_is_computed_once(tmp_path, content, known):
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []
    with FileHashes(tell=told.append) as hashes:
        assert hashes.sha256(tmp_path / "file") == known
        hashes.begin(tmp_path / "file")
        assert hashes.sha256(tmp_path / "file") == known
    assert sum(told) == len(content)


def test_the_weights_of_a_bundle_are_begun_without_its_manifest(tmp_path):
    folder = tmp_path / "components" / "denoiser"
    folder.mkdir(parents=True)
    for name, size in (("large.data", LARGE_BYTES), ("small.onnx", 10)):
        (folder / name).write_bytes(bytes(size))
    (folder / "link.data").symlink_to(folder / "large.data")
    asked: list[str] = []
    with FileHashes() as hashes:
        really = hashes.begin
        hashes.begin = lambda file: asked.append(file.name) or really(file)
        hashes.begin_weights(tmp_path)
        hashes.begin_weights(tmp_path / "nowhere")
    assert asked == ["large.data"]


def test_who_asks_computes_what_no_thread_can_and_is_told_in_turn(tmp_path, monkeypatch):
    def refuse(*work: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(file_hashes._thread, "start_new_thread", refuse)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "cut").write_bytes(b"abc")
    with FileHashes() as hashes:
        hashes.begin(tmp_path / "file")
        hashes.begin(tmp_path / "cut")
        os.truncate(tmp_path / "cut", 1)
        assert hashes.sha256(tmp_path / "file") == OF_ABC
        with pytest.raises(BundleError, match="cut: was cut while it was read"):
            hashes.sha256(tmp_path / "cut")


def test_nobody_waits_for_a_thread_that_died(tmp_path, monkeypatch):
    """It began, and had no memory for more."""
    monkeypatch.setattr(file_hashes._thread, "start_new_thread", lambda *work: 1)
    (tmp_path / "file").write_bytes(b"abc")
    with FileHashes(1) as hashes:
        hashes.begin(tmp_path / "file")
        assert hashes.sha256(tmp_path / "file") == OF_ABC


def test_hashes_of_many_files_by_several_threads_are_each_its_own(tmp_path):
    files = [tmp_path / str(number) for number in range(50)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000 * number)
    with FileHashes(3) as hashes:
        for file in files:
            hashes.begin(file)
        assert [hashes.sha256(file) for file in files] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def test_whoever_leaves_waits_for_no_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "CHUNK_BYTES", 1)
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(bytes(100))
    began, left, told = threading.Event(), threading.Event(), []

    def tell(size: int) -> None:
        told.append(size)
        began.set()
        left.wait(600)

    hashes = FileHashes(1, tell)
    for name in ("file", "other"):
        hashes.begin(tmp_path / name)
    began.wait(600)
    leaving = threading.Thread(target=hashes.__exit__)
    leaving.start()
    while not hashes._ended:
        pass
    left.set()
    leaving.join(600)
    assert sum(told) == 1 and not leaving.is_alive()
