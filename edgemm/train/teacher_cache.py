"""What a teacher said, on disk: computed once, and found again by a run that was stopped or by the next student.

    FOLDER/teacher.json          whose answers these are, and to what
    FOLDER/NAME.safetensors      one answer; written beside and renamed, so it is whole or not there

It knows names and tensors, never models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from edgemm.errors import InputError

__all__ = ["TeacherCache"]


class TeacherCache:
    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """Raises InputError when the folder holds the answers of another teacher, or to other questions."""
        self.folder = folder
        wanted = json.dumps(key, sort_keys=True, indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        described = folder / "teacher.json"
        if described.exists() and described.read_text(encoding="utf-8") != wanted:
            raise InputError(
                f"{folder}: holds answers of another teacher or recipe; delete it or choose another output"
            )
        _write(described, lambda path: path.write_text(wanted, encoding="utf-8"))

    def get(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The stored answer, or what `compute` gives, which is then stored."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            answer = {key: tensor.contiguous() for key, tensor in compute().items()}
            _write(path, lambda temporary: save_file(answer, temporary))
        try:
            return load_file(path)  # what was stored, so that a resumed run sees the same numbers
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {error}; delete it, it will be computed again") from error


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
