"""A small dataset of shapes, a micro model that learned to draw it, and one that learned to read after that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgemm.data.shapes import build_shapes
from edgemm.data.writer import new_folder
from edgemm.model import checkpoint
from edgemm.train.recipe import Stage
from edgemm.train.recipe_file import read_recipe
from edgemm.train.run import train
from tests.model.tiny import varied_micro
from tests.shared import made_once

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "tests" / "fixtures" / "emoji64"


def recipe(name: str, output: Path, **changes: Any) -> Any:
    """A recipe of recipes/ with changes, on one thread."""
    changes = {"output": output, "threads": 1, **changes}
    return read_recipe(ROOT / "recipes" / f"{name}.toml", [f"{key}={value}" for key, value in changes.items()], Stage)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        with new_folder(folder, force=False) as inside:
            build_shapes(inside, size=64, count=200, seed=0)

    return made_once(tmp_path_factory, "shapes", make)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, shapes) -> Path:
    """The run folder of a micro that draws shapes."""
    return made_once(
        tmp_path_factory, "drawn", lambda output: train(recipe("micro-shapes", output, data=shapes, steps=150))
    )


@pytest.fixture(scope="session")
def read(tmp_path_factory, drawn) -> Path:
    """The run folder of that micro after it was also taught to read emoji."""
    changes = {"data": EMOJI, "start": drawn / "checkpoint", "steps": 30, "batch": 12, "log_every": 1}
    return made_once(tmp_path_factory, "read", lambda output: train(recipe("micro-read", output, **changes)))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "micro"
    checkpoint.save(varied_micro(), folder)
    return folder
