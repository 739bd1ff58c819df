"""A tiny bundle, opened once for all tests of the runtime."""

from __future__ import annotations

import pytest

import edgemm
from tests.runtimes.tiny_bundle import build
from tests.runtimes.tiny_weights import Weights


@pytest.fixture(scope="session")
def weights():
    return Weights()


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory, weights):
    return build(tmp_path_factory.mktemp("bundles") / "tiny.bundle", weights)


@pytest.fixture(scope="session")
def model(bundle_path):
    with edgemm.load(bundle_path, device="cpu", threads=1) as opened:
        yield opened
