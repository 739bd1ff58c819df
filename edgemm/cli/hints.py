"""The command that comes next, as a shell takes it: folders of any name can be copied from a last line."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgemm.bundle.writer import telling_name

__all__ = ["command", "to_export"]


def command(*words: str | Path) -> str:
    return shlex.join(["edgemm", *(str(word) for word in words)])


def to_export(checkpoint: str | Path) -> str:
    return "export it: " + command("export", checkpoint, "--output", f"{telling_name(Path(checkpoint))}.bundle")
