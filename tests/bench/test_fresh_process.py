"""Peak memory is a process's own, and the page cache can be told to forget."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgemm.bench.memory import drop_from_page_cache

MEGABYTE = 1_000_000


def peak_of_a_child(work: str) -> int:
    code = f"from edgemm.bench.memory import peak_memory_bytes\n{work}\nprint(peak_memory_bytes())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_the_peak_is_remembered_after_memory_was_given_back():
    low, high = peak_of_a_child(""), peak_of_a_child("block = bytearray(200_000_000)\ndel block")
    assert high - low == pytest.approx(200 * MEGABYTE, abs=20 * MEGABYTE)  # the interpreter itself varies a little


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is only ru_maxrss")
def test_the_peak_does_not_count_the_parent():
    parents = np.ones(50 * MEGABYTE)  # 400 MB
    assert peak_of_a_child("") < parents.nbytes / 2


def test_dropping_files_from_memory_changes_none(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights").write_bytes(b"\1" * 10_000)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    drop_from_page_cache(tmp_path)
    assert (tmp_path / "inner" / "weights").read_bytes() == b"\1" * 10_000
