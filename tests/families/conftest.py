"""One bundle a tiny foreign model, exported when a test first asks for it; tests must not change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import edgemm
from edgemm.families.folder import find_foreign
from edgemm.runtimes.model import Model
from edgemm.verify.export_foreign import export_foreign
from tests.families.tiny.folders import write_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Iterator[Callable[..., tuple[Path, Model]]]:
    """exported("llava", side=32) -> the library's folder and the opened bundle."""
    made: dict[str, tuple[Path, Model]] = {}

    def export(name: str, **changes: Any) -> tuple[Path, Model]:
        key = repr((name, changes))
        if key not in made:
            place = tmp_path_factory.mktemp(name)
            folder = write_folder(name, place / "checkpoint", **changes)
            found = find_foreign(folder)
            assert found is not None
            export_foreign(found, place / "made.bundle")
            made[key] = folder, edgemm.load(place / "made.bundle", device="cpu", threads=1)
        return made[key]

    yield export
    for _, model in made.values():
        model.close()
