"""A result on the disk: written whole or not at all, and read again.

A disk that is full is told with the right exit code, and nothing half written is left: the caller still has the result.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from edgemm.errors import InputError, ResourceError
from edgemm.whole_folder import is_disk_full

__all__ = ["read_result", "write_whole"]

FIELDS = ("card", "plan", "rows", "measured")


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    target = Path(os.path.abspath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(f"{target}: the disk is full; this file was not kept") from error
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_result(path: Path) -> dict[str, Any]:
    """The JSON document that `edgemm bench` printed: the whole file, or its last line."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            document = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(document, dict) and all(isinstance(document.get(field), dict) for field in FIELDS):
            return document
    raise InputError(f"{path}: its last line is not the JSON document that `edgemm bench` prints")
