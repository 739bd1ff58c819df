"""A tiny bundle that is all right, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtimes.tiny_bundle import build


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sound") / "tiny.bundle")


@pytest.fixture
def copy(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "tiny.bundle"))
