"""What config.json says that a folder of the Hugging Face hub holds.  No torch here, and no weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.bundle.files import read_text, reading
from edgemm.errors import CheckpointError, InputError, UsageError

__all__ = ["Found", "find_foreign", "other_folders"]


@dataclass(frozen=True)
class Found:
    """What config.json says that a folder holds."""

    folder: Path
    architecture: str
    config: dict[str, Any]
    others: Mapping[str, Path] = field(default_factory=dict)  # folders of what is published apart, by name

    @property
    def packed(self) -> str | None:
        """Who packed the weights, "gptq" or "awq" for example, as config.json says; None where they are plain."""
        told = self.config.get("quantization_config") or self.config.get("compression_config")
        return str(told.get("quant_method", "compressed-tensors")) if isinstance(told, dict) else None

    def other(self, name: str, what: str) -> Path:
        """A folder that the caller has named; CheckpointError says `what` it is and how to name it."""
        if name not in self.others:
            option = "--vae FOLDER" if name == "vae" else f"--component {name}=FOLDER"
            raise CheckpointError(f"{self.folder}: holds no {name}, which is {what}; name its folder: {option}")
        return self.others[name]


def find_foreign(folder: Path) -> Found | None:
    """None where it is no Hugging Face model: then it may be a checkpoint of edgemm's own."""
    path = folder / "config.json"
    try:
        with reading(path):
            config = json.loads(read_text(path))
    except InputError:
        return None  # the native loader says what is wrong
    if not isinstance(config, dict) or not config.keys() & {"architectures", "model_type", "_class_name"}:
        return None
    class_name = config.get("_class_name")  # of what was saved through diffusers
    names = config.get("architectures") or [class_name or f"(none named, model_type {config.get('model_type')!r})"]
    with reading(path, "architectures", CheckpointError):
        return Found(folder, str(names[0]), config)


def other_folders(named: Iterable[str]) -> dict[str, Path]:
    """Of words NAME=FOLDER; InputError where there is no such folder."""
    found: dict[str, Path] = {}
    for word in named:
        name, _, folder = word.partition("=")
        if not name or not folder:
            raise UsageError(f"--component is {word!r}, expected NAME=FOLDER")
        if name in found:
            raise UsageError(f"--component names {name} twice")
        found[name] = Path(folder)
        if not found[name].is_dir():
            raise InputError(f"{folder}: no folder, and {name} was to be read from it")
    return found
