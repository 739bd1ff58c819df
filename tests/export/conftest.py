"""One random model, traced once, and one bundle of it a precision; tests must not change them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import edgemm
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.export.trace import trace
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.verify import export_native as bundle_export
from edgemm.verify.export_native import export_bundle
from tests.export.nano import PRECISIONS, random_nano


@pytest.fixture(scope="session")
def model() -> Unified:
    return random_nano()


@pytest.fixture(scope="session")
def checkpoint_path(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "nano"
    checkpoint.save(model, path)
    (path / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# nano\n")
    return path


@pytest.fixture(scope="session")
def graphs(model) -> dict[str, ComponentGraph]:
    return component_graphs(model)


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> Callable[[ComponentGraph], ir.Model]:
    """trace(), but each component is traced once in the whole session, whichever of its processes asks, and once more
    when it was smoothed: tracing takes most of what these tests do."""
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    kept.mkdir(exist_ok=True)

    def trace_once(graph: ComponentGraph) -> ir.Model:
        path = kept / f"{graph.name}-{_weights_of(graph)}.onnx"
        if not path.exists():
            mine = path.with_suffix(f".{os.getpid()}")
            ir.save(trace(graph), mine, format="protobuf")
            os.replace(mine, path)
        return ir.load(path)

    return trace_once


def _weights_of(graph: ComponentGraph) -> str:
    digest = hashlib.sha256()
    for tensor in graph.module.state_dict().values():
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def export(references, checkpoint_path) -> Callable[..., Path]:
    """export_bundle of that checkpoint, without tracing it anew."""

    def run(path: Path, **options) -> Path:
        torch.manual_seed(len(str(path)))  # nothing may depend on it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_export, "trace", references)
            export_bundle(checkpoint_path, path, **options)
        return path

    return run


@pytest.fixture(scope="session")
def bundles(export, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {precision: export(folder / f"{precision}.bundle", precision=precision) for precision in PRECISIONS}


@pytest.fixture(scope="session")
def runtimes(bundles):
    opened = {precision: edgemm.load(path, device="cpu", threads=1) for precision, path in bundles.items()}
    yield opened
    for runtime in opened.values():
        runtime.close()


# Of a module's own `model`


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny"
    checkpoint.save(model, path)
    return path


@pytest.fixture(scope="module")
def bundle(saved, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    export_bundle(saved, path)
    return path


@pytest.fixture(scope="module")
def runtime(bundle):
    with edgemm.load(bundle, device="cpu", threads=1) as opened:
        yield opened
