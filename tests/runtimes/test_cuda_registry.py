"""The real onnxruntime-gpu over empty CUDA libraries: what it would do with a bundle, with no GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.verify.export_native import export_bundle

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(os.environ.get("EDGEMM_ORT_GPU", ROOT / "build" / "ort-gpu"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PACKAGES / "onnxruntime").is_dir(), reason="python benchmarks/cuda_registry.py brings it"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make CUDA's libraries with"),
]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_component_is_one_captured_graph_that_reads_its_inputs(precision, tmp_path):
    bundle = tmp_path / f"{precision}.bundle"
    export_bundle(ROOT / "checkpoints" / "micro-shapes", bundle, target="cuda", precision=precision)
    script = [sys.executable, str(ROOT / "benchmarks" / "cuda_registry.py"), str(bundle)]
    places = ["--packages", str(PACKAGES), "--stubs", str(tmp_path / "stubs")]
    done = subprocess.run([*script, *places], capture_output=True, text=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    assert done.returncode == 0 and len(rows) == 5, done.stdout
    assert all(row["captured"] and row["on_gpu"] > row["on_cpu"] and not row["problems"] for row in rows)
