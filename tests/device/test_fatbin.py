"""Which GPUs a library has code for: a section written by hand, and the real onnxruntime-gpu where it is."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from edgemm.device.fatbin import CudaCode, read_cuda_code


def container(*entries: tuple[int, int]) -> bytes:
    """(kind, compute capability) as nvcc's fatbinary writes them, each with 40 bytes of code."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, 40) + bytes(12) + struct.pack("<I", sm) + bytes(32 + 40)
        for kind, sm in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_code_of_every_container_is_found_and_what_only_looks_like_one_is_not(tmp_path):
    library = tmp_path / "library.so"
    stray = struct.pack("<I", 0xBA55ED50) + bytes(40)
    library.write_bytes(b"ELF" + stray + container((2, 80), (2, 86)) + bytes(7) + container((2, 120), (1, 90)) + stray)
    assert read_cuda_code(library) == CudaCode((80, 86, 120), (90,))
    for nothing in (bytes(100), b""):
        library.write_bytes(nothing)
        assert read_cuda_code(library) is None


@pytest.mark.parametrize(
    ("capability", "on_tegra", "runs"),
    [("8.6", False, True), ("8.9", False, True), ("8.7", True, False), ("8.0", True, True), ("7.5", False, False),
     ("9.0", False, True), ("11.0", True, True), ("12.1", False, True)],
)  # fmt: skip
def test_machine_code_runs_within_its_major_and_never_across_to_a_jetson(capability, on_tegra, runs):
    """CUDA's programming guide: cubins are compatible with higher minors, not between desktop and Tegra."""
    assert CudaCode((80, 86, 120), (90,)).runs_on(capability, on_tegra) == runs
    orins = CudaCode((87,))
    assert orins.runs_on("8.7", on_tegra=True) and not orins.runs_on("8.9")


WHEEL = os.environ.get("EDGEMM_ORT_GPU", "build/ort-gpu")  # onnxruntime-gpu, unpacked (benchmarks/cuda_registry.py)
REAL = Path(WHEEL) / "onnxruntime/capi/libonnxruntime_providers_cuda.so"


@pytest.mark.skipif(not REAL.is_file(), reason="python benchmarks/cuda_registry.py brings it")
def test_pypis_wheel_for_x86_holds_code_for_pcs_and_none_for_a_jetson():
    """1.31.1, and what cuobjdump lists of it."""
    code = read_cuda_code(REAL)
    assert code is not None and code.cubins == (75, 80, 86, 89, 90, 120) and not code.ptx
    assert code.runs_on("8.9") and not code.runs_on("8.7", on_tegra=True)
