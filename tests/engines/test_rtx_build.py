"""The shipped checkpoint for RTX devices, in every precision: compared with torch here, built by `make build-rtx`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from benchmarks.uncompared_graphs import write_bundles
from edgemm.bundle.bundle import open_bundle
from edgemm.export.trace import trace
from edgemm.verify import export_native as bundle_export
from edgemm.verify.export_native import export_bundle
from tests.export.nano import needs_opset_24

pytestmark = [pytest.mark.slow, needs_opset_24]
CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "sticker-small"
PRECISIONS = ("int8", "int4", "fp16")
CONTEXT = 512  # slots: ONNX Runtime's CPU looks at all of them


@pytest.fixture(scope="module")
def traced_once(tmp_path_factory) -> Callable[..., ir.Model]:
    """For all precisions, and both ways."""
    folder = tmp_path_factory.mktemp("traced")

    def traced(graph) -> ir.Model:
        kept = folder / f"{graph.name}.onnx"
        if not kept.exists():
            ir.save(trace(graph), kept)
        return ir.load(kept)

    return traced


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graphs_that_ci_builds_are_those_that_agree_with_torch(precision, traced_once, tmp_path, monkeypatch):
    """Every graph and both loops by ONNX Runtime's CPU; then the same graphs, file for file, without comparing."""
    monkeypatch.setattr(bundle_export, "trace", traced_once)
    monkeypatch.setattr("edgemm.export.trace.trace", traced_once)
    (uncompared,) = write_bundles(CHECKPOINT, [precision], tmp_path / "uncompared", CONTEXT)
    export_bundle(CHECKPOINT, tmp_path / "compared", target="rtx", precision=precision, max_context=CONTEXT)
    graphs = [
        {name: record for name, record in open_bundle(path).manifest.files.items() if name.startswith("components/")}
        for path in (uncompared, tmp_path / "compared")
    ]
    assert graphs[0] == graphs[1] and len(graphs[0]) >= 8, "five graphs, and weights beside all but one or two"
