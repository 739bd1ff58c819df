"""The shipped checkpoint, whole, in every precision, through NVIDIA's builder for three kinds of RTX devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import ModelProto

from edgemm.export import bundle_export
from edgemm.export.bundle_export import export_bundle
from edgemm.export.reference import trace
from tests.build.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24

pytestmark = [pytest.mark.slow, needs_rtx, needs_opset_24]
ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "sticker-small"
PRECISIONS = ("fp16", "int8", "int4")


@pytest.fixture
def bundles(tmp_path, monkeypatch) -> list[str]:
    """Traced once for all."""

    def trace_once(graph) -> ModelProto:
        kept = tmp_path / f"{graph.name}.traced"
        if not kept.exists():
            kept.write_bytes(trace(graph).SerializeToString())
        return ModelProto.FromString(kept.read_bytes())

    monkeypatch.setattr(bundle_export, "trace", trace_once)
    for precision in PRECISIONS:
        export_bundle(CHECKPOINT, tmp_path / f"{precision}.bundle", "rtx", precision, max_context=512)
    return [str(tmp_path / f"{precision}.bundle") for precision in PRECISIONS]


def test_every_component_of_the_shipped_checkpoint_builds_for_every_sm(bundles):
    command = [sys.executable, "benchmarks/rtx_build.py", *bundles, "--sm", "86,89,120"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    document = json.loads(ran.stdout.splitlines()[-1])
    assert ran.returncode == 0 and document["problems"] == []
    assert len(document["results"]) == 3 * 3 * 5
