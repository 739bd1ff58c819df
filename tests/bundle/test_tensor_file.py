"""What a bundle holds in safetensors files: numbers as they were written, and one line for a file that is damaged."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from edgemm.bundle.bundle import read_tensors
from edgemm.errors import BundleError, MissingError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([[True, False, True]]),
    "c": np.array([-1, 2**40], dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
}


def test_what_the_library_wrote_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "t.safetensors", metadata={"format": "np"})
    read = read_tensors(tmp_path / "t.safetensors")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_bfloat16_is_widened(tmp_path):
    wanted = torch.tensor([1.0, -3.25, 1e30, 2**-120, float("inf")], dtype=torch.bfloat16)
    save_torch_file({"a": wanted}, tmp_path / "t.safetensors")
    read = read_tensors(tmp_path / "t.safetensors")["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, wanted.float().numpy())


def test_without_the_library_the_cure_is_told(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "t.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingError, match="pip install safetensors"):
        read_tensors(tmp_path / "t.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    save_file(TENSORS, tmp_path / "t.safetensors")
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:kept])
    with pytest.raises(BundleError, match=r"t\.safetensors"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_type_that_no_bundle_holds_is_refused(tmp_path):
    save_file({"a": np.zeros(3, dtype=np.float64)}, tmp_path / "t.safetensors")
    with pytest.raises(BundleError, match="tensor 'a' is of F64, expected one of F32"):
        read_tensors(tmp_path / "t.safetensors")
