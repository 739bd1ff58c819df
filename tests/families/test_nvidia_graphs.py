"""Graphs of every family for JetPack 6 and `cuda`, traced and never run: rules of both, and the real onnxruntime-gpu.

The library's kernels compute nothing here: it opens the graphs over empty CUDA libraries (benchmarks/cuda_registry.py).
`make test-cuda-registry` brings it.
"""

from __future__ import annotations

import pytest

from benchmarks.uncompared_graphs import write_foreign_bundles
from edgemm.bundle.bundle import open_bundle
from edgemm.cli.verify import check_rules
from tests.export.nano import needs_opset_24
from tests.families.golden import Cases
from tests.families.tiny.folders import write_folder
from tests.runtimes.test_cuda_registry import needs_registry, rows_of

pytestmark = [pytest.mark.slow, needs_opset_24]

MADE_HERE = ("chameleon", "emu3", "fuyu", "janus", "janusflow", "llama", "llava", "qwen3_vl")
PUBLISHED = ("bagel", "cosmos3-edge", "cosmos3-omni", "mobileo", "showo2")  # tiny folders of their own code's making
CONVOLVED = "no: convolutions"  # cuDNN plans those as they run, which no empty library does


@pytest.fixture(scope="module", params=[*MADE_HERE, *PUBLISHED])
def bundles(request, tmp_path_factory):
    """One a precision."""
    name, place = request.param, tmp_path_factory.mktemp("graphs")
    made = write_folder(name, place / "checkpoint") if name in MADE_HERE else Cases(name).folder / "checkpoint"
    folder = made[0] if isinstance(made, tuple) else made  # an autoencoder that lies beside it is found there
    return list(write_foreign_bundles(folder, ["fp16", "int4"], place, target="cuda,jetson-orin-jp6"))


def test_they_keep_the_rules_of_their_targets(bundles):
    for path in bundles:
        check_rules(open_bundle(path, verify=False))


@needs_registry
def test_cuda_has_every_kernel_copies_nothing_and_takes_them_for_capture(bundles, tmp_path):
    rows = rows_of(bundles, tmp_path)
    assert {row["ran"] for row in rows} <= {"yes", CONVOLVED}
    assert all(row["captured"] and row["on_gpu"] > row["on_cpu"] for row in rows)
