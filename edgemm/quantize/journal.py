"""What a search has measured so far, a JSON line each: killed at any moment, it goes on from here.

The first line says what was searched; a journal of anything else is refused rather than mixed in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgemm.errors import InputError

__all__ = ["Journal"]


class Journal:
    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may tear the last one
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")
            return
        known = _parsed(path, whole[0])
        changed = sorted(name for name in about.keys() | known.keys() if about.get(name) != known.get(name))
        if changed:
            raise InputError(
                f"{path}: an unfinished search with another {', '.join(changed)}; delete it, or search as it was begun"
            )
        for line in whole[1:]:
            row = _parsed(path, line)
            self.found[row["key"]] = row
        path.write_text("".join(whole), encoding="utf-8")

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        row = {"key": key, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.found[key] = row
        return row


def _parsed(path: Path, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: not the journal of a search: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}: not the journal of a search")
    return row
