"""Where a spec may be written: asked before the work, so that no hour is lost to a folder in the way."""

from __future__ import annotations

from pathlib import Path

from edgemm.errors import InputError

__all__ = ["JSON_FILE", "check_destination", "journal_of"]

JSON_FILE = "quant.json"


def check_destination(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name or ask to overwrite it (--overwrite)")
    if path.exists() and not (path / JSON_FILE).is_file():
        raise InputError(f"{path}: exists and is no spec, so it will not be replaced")


def journal_of(path: Path) -> Path:
    """Where a search for the spec `path` writes down what it has measured."""
    return path.with_name(f"{path.name}.search.jsonl")
