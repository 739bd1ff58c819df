"""What config.json says that a folder of the Hugging Face hub holds.  No torch here, and no weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Found", "find_foreign"]


@dataclass(frozen=True)
class Found:
    """What config.json says that a folder holds."""

    folder: Path
    architecture: str
    config: dict[str, Any]


def find_foreign(folder: Path) -> Found | None:
    """None where it is no Hugging Face model: then it may be a checkpoint of edgemm's own."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the native loader says what is wrong
    if not isinstance(config, dict) or not config.keys() & {"architectures", "model_type"}:
        return None
    names = config.get("architectures") or [f"(none named, model_type {config.get('model_type')!r})"]
    return Found(folder, str(names[0]), config)
