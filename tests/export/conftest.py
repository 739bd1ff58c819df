"""One random model, traced once, and one bundle of it a precision; tests must not change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import edgemm
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.verify.export_native import export_bundle
from tests.export.nano import PRECISIONS, random_nano
from tests.traced import traced


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
def references() -> Callable[[ComponentGraph], ir.Model]:
    """trace(), but each component is traced once in the whole run, and once more when it was smoothed."""
    return traced


@pytest.fixture(scope="session")
def export(checkpoint_path) -> Callable[..., Path]:
    """export_bundle of that checkpoint."""

    def run(path: Path, **options) -> Path:
        torch.manual_seed(len(str(path)))  # nothing may depend on it
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
