"""The real onnxruntime-gpu over empty CUDA libraries: what it would do with our graphs, with no GPU.

`make test-cuda-registry` brings it; tests/families/test_nvidia_graphs.py asks it about other families.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.uncompared_graphs import write_bundles
from tests.export.nano import needs_opset_24

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(os.environ.get("EDGEMM_ORT_GPU", ROOT / "build" / "ort-gpu"))

needs_registry = pytest.mark.skipif(
    not (PACKAGES / "onnxruntime").is_dir() or shutil.which("cc") is None,
    reason="make test-cuda-registry brings it, and wants a C compiler",
)
PRECISIONS = ("fp16", "int8", "int4", "fp32")


def rows_of(bundles, folder):
    """A row a component; none of them is wrong."""
    script = [sys.executable, str(ROOT / "benchmarks" / "cuda_registry.py"), *map(str, bundles)]
    places = ["--packages", str(PACKAGES), "--stubs", str(folder / "stubs")]
    done = subprocess.run([*script, *places], capture_output=True, text=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    assert done.returncode == 0 and not any(row["problems"] for row in rows), done.stdout
    return rows


@pytest.mark.slow
@needs_opset_24
@needs_registry
def test_every_component_is_one_captured_graph_that_reads_its_inputs(tmp_path):
    checkpoint = ROOT / "checkpoints" / "micro-shapes"
    rows = rows_of(write_bundles(checkpoint, PRECISIONS, tmp_path, target="cuda"), tmp_path)
    assert len(rows) == 5 * len(PRECISIONS)
    assert all(row["ran"] == "yes" and row["captured"] and row["on_gpu"] > row["on_cpu"] for row in rows)
