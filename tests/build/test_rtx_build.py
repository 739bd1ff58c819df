"""The shipped checkpoint, whole, through NVIDIA's builder for three kinds of RTX devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24

pytestmark = [pytest.mark.slow, needs_rtx, needs_opset_24]
ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "sticker-small"


def test_every_component_of_the_shipped_checkpoint_builds_for_every_sm(tmp_path):
    bundle = tmp_path / "rtx.bundle"
    export = [
        "-m",
        "edgemm",
        "export",
        str(CHECKPOINT),
        "--target",
        "rtx",
        "--max-context",
        "512",
        "--output",
        str(bundle),
    ]
    subprocess.run([sys.executable, *export], cwd=ROOT, check=True)
    command = [sys.executable, "benchmarks/rtx_build.py", str(bundle), "--sm", "86,89,120"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    document = json.loads(ran.stdout.splitlines()[-1])
    assert ran.returncode == 0 and document["problems"] == []
    assert len(document["engines"]) == 15
