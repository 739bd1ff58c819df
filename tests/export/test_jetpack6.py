"""A whole bundle for JetPack 6 on what JetPack 6 has: ONNX Runtime 1.23.2, in an environment of its own.

python benchmarks/portable_dialect.py x.bundle [--python python3.10]     # makes that environment
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.verify.export_native import export_bundle
from tests.export.nano import needs_opset_24

ROOT = Path(__file__).resolve().parents[2]
OLD = Path(os.environ.get("EDGEMM_ORT_123", ROOT / "build" / "ort-1.23"))

pytestmark = [
    pytest.mark.slow,
    needs_opset_24,
    pytest.mark.skipif(not (OLD / "bin/python").exists(), reason="python benchmarks/portable_dialect.py makes it"),
]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_reads_and_draws_what_was_recorded(precision, tmp_path):
    """Words to ids, a picture that is read, replies, drawings: by torch, of a newer ONNX Runtime's bundle."""
    bundle = tmp_path / f"{precision}.bundle"
    export_bundle(ROOT / "checkpoints" / "micro-shapes", bundle, target="jetson-orin-jp6", precision=precision)
    script = [sys.executable, ROOT / "benchmarks" / "portable_dialect.py", bundle, "--environment", OLD]
    done = subprocess.run(script, capture_output=True, text=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0 and found["passed"], done.stdout
    assert found["onnxruntime"].startswith("1.23") and {"choices", "psnr_db"} <= {
        row["measure"] for row in found["comparisons"]
    }
