"""Hashes that are computed beside other work are right, are computed once, and end with their owner."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from edgemm.bundle import held_file as file_hashes
from edgemm.bundle.held_file import LARGE_BYTES, FileHashes

OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(("content", "known"), [(b"abc", OF_ABC), (b"", OF_NOTHING)])
def test_a_hash_is_the_standards_and_is_computed_once(tmp_path, content, known):
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []
    with FileHashes(tell=told.append) as hashes:
        first = hashes.begin(tmp_path / "file")
        assert first.result() == known
        assert hashes.begin(tmp_path / "file") is first
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


def test_whoever_leaves_waits_for_no_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "CHUNK_BYTES", 1)
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(bytes(100))
    began, left, ended, told = threading.Event(), threading.Event(), threading.Event(), []

    def tell(size: int) -> None:
        told.append(size)
        began.set()
        left.wait(600)

    hashes = FileHashes(1, tell)
    running, waiting = hashes.begin(tmp_path / "file"), hashes.begin(tmp_path / "other")
    waiting.add_done_callback(lambda _: ended.set())
    began.wait(600)
    leaving = threading.Thread(target=hashes.__exit__)
    leaving.start()
    ended.wait(600)
    left.set()
    leaving.join()
    with pytest.raises(CancelledError):
        running.result()
    assert sum(told) == 1
