"""What was hashed is what is read: files that change under a model change nothing, or are told of in one line."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgemm
from edgemm.bundle.held_file import HeldFile
from edgemm.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
DATA = "components/denoiser/cpu-fp32.onnx.data"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="mappings are made the process's own on Linux")


def drawn(model) -> np.ndarray:
    return model.generate_image("a heart", seed=3, num_inference_steps=2).image.pixels


@pytest.fixture(scope="module")
def expected(sound):
    with edgemm.load(sound, device="cpu", threads=1) as model:
        return drawn(model)


def other(folder: Path) -> None:
    """Other weights, of the same size."""
    content = bytearray((folder / DATA).read_bytes())
    content[::7] = bytes(len(content[::7]))
    (folder / "new").write_bytes(content)
    os.replace(folder / "new", folder / DATA)


@pytest.mark.parametrize(
    "change", [other, lambda folder: (folder / DATA).unlink(), shutil.rmtree], ids=["replaced", "a file gone", "gone"]
)
def test_a_model_goes_on_with_what_it_verified(copy, expected, change):
    with edgemm.load(copy, device="cpu", threads=1) as model:
        change(copy)
        np.testing.assert_array_equal(drawn(model), expected)


def test_a_bundle_that_is_replaced_by_another_leaves_the_model_as_it_was(copy, expected, tmp_path):
    with edgemm.load(copy, device="cpu", threads=1) as model:
        copy.rename(tmp_path / "before")
        shutil.copytree(tmp_path / "before", copy)
        other(copy)
        np.testing.assert_array_equal(drawn(model), expected)


@pytest.mark.parametrize("size", [0, 1000, None])
def test_what_is_written_into_before_its_first_use_is_told(copy, size):
    with edgemm.load(copy, device="cpu", threads=1) as model:
        with open(copy / DATA, "r+b") as stream:
            stream.write(b"\1\2\3\4")
            stream.truncate(size) if size is not None else None
        for _ in range(2):  # asked again, it is refused again
            with pytest.raises(BundleError, match=r"denoiser/cpu-fp32.onnx.data: was (altered|cut)"):
                drawn(model)


def test_a_change_that_leaves_the_bytes_as_they_were_is_none(copy, expected):
    with edgemm.load(copy, device="cpu", threads=1) as model:
        (copy / DATA).chmod(0o600)
        os.utime(copy / DATA)
        np.testing.assert_array_equal(drawn(model), expected)


@on_linux
def test_files_that_are_cut_or_overwritten_under_a_loaded_model_change_nothing(copy, expected):
    """In a process of its own: a mapped file that is cut ends a process."""
    code = f"""
import sys, pathlib, numpy as np, edgemm
model = edgemm.load({str(copy)!r}, device="cpu", threads=1)
model.prepare()
for path in pathlib.Path({str(copy)!r}).rglob("*.data"):
    with open(path, "r+b") as stream:
        stream.write(b"\\xff" * 5000)
        stream.truncate(10)
np.save(sys.argv[1], model.generate_image("a heart", seed=3, num_inference_steps=2).image.pixels)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(copy / "drawn.npy")], env=environment, check=True)
    np.testing.assert_array_equal(np.load(copy / "drawn.npy"), expected)


def test_a_held_file_reads_what_it_hashed(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    held = HeldFile(tmp_path / "file")
    assert held.sha256() and held.is_in_place()
    (tmp_path / "new").write_bytes(b"xyz" * 1000)
    os.replace(tmp_path / "new", tmp_path / "file")
    assert not held.is_in_place() and bytes(held.content()) == b"abc" * 1000


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_never_waited_for(tmp_path, put):
    put(tmp_path / "file")
    with pytest.raises(BundleError, match="file"):
        HeldFile(tmp_path / "file")


def test_open_files_are_let_go_with_the_model(copy):
    def count():
        gc.collect()
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    with edgemm.load(copy, device="cpu", threads=1) as model:
        model.prepare()
    before = count()
    for _ in range(5):
        with edgemm.load(copy, device="cpu", threads=1) as model:
            model.prepare()
    assert count() <= before
