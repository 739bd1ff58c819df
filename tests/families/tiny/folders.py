"""Tiny foreign models with random weights, written as the folders that people download: one file a family."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["write_folder"]


def write_folder(family: str, path: Path, **changes: Any) -> Path:
    """`path`, with a model of the family in it; `changes` are those of the family's own file."""
    return import_module(f"tests.families.tiny.{family}").folder(path, **changes)
