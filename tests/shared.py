"""Folders that all processes of a run share: what takes long is made by whoever asks first, and others wait for it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["alone", "made_once", "run_folder"]


def run_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """`name` among the run's own temporary folders, the same for each of its processes."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """No other process of the run is in such a block with the same file."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The path that `make` filled, once a run; it is not there before, and tests must not change it."""
    place = run_folder(factory, "made")
    made, whole = place / name, place / f"{name}.whole"
    with alone(place / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(made, ignore_errors=True)  # of somebody who failed
            make(made)
            whole.touch()
    return made
