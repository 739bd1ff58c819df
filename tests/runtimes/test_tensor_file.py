"""The reader of safetensors files against the library that writes them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemm.errors import BundleError
from edgemm.runtimes.adapters import read_tensors

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


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    save_file(TENSORS, tmp_path / "t.safetensors")
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:kept])
    with pytest.raises(BundleError, match=r"t\.safetensors"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_type_that_no_bundle_holds_is_refused(tmp_path):
    save_file({"a": np.zeros(3, dtype=np.float64)}, tmp_path / "t.safetensors")
    with pytest.raises(BundleError, match="tensor 'a' cannot be read"):
        read_tensors(tmp_path / "t.safetensors")
