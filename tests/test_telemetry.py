"""ONNX Runtime from 1.29 on leaves a device's number in the user's cache and reports to its makers: not from edgemm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = """
import sys
import edgemm
from edgemm.device.providers import one_node_model
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(one_node_model(), providers=["CPUExecutionProvider"])
session.run(None, {"x": np.eye(4, dtype=np.float32)})
from edgemm.device.child import ask
assert ask("edgemm.device.providers", ["CPUExecutionProvider"]).value["problem"] == ""
"""
ASKED = "import os, edgemm; print(os.environ.get('ORT_DISABLE_TELEMETRY'))"


def _run(code: str, home: Path, **more: str) -> str:
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **more}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_run_and_its_children_leave_no_file_in_an_empty_home(tmp_path):
    _run(RUN, tmp_path)
    assert [str(path) for path in tmp_path.rglob("*")] == []


def test_without_the_variable_the_library_does_leave_one(tmp_path):
    """Or the test above says nothing."""
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29) or sys.platform != "linux":
        pytest.skip("this ONNX Runtime has no telemetry here")
    _run(RUN, tmp_path, EDGEMM_TELEMETRY="1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, "1"), ({"EDGEMM_TELEMETRY": "1"}, "None"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")]
)
def test_who_says_otherwise_is_heard(tmp_path, given, wanted):
    assert _run(ASKED, tmp_path, **given) == wanted
