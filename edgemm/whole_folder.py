"""A folder that is whole or not there: written under another name beside its destination, renamed when the block ends.

    with whole_folder(Path("runs/x/checkpoint"), may_replace) as folder:
        ...                                                      # everything goes to `folder`

Whatever goes wrong in the block, Ctrl-C included, what stood there before stands there still, and nothing else is left.
A kill leaves `.NAME.*.partial` beside it; a kill between the two renames of a replacement leaves the old folder under
`.NAME.*.old`.  What may be replaced, and what to say of a full disk, is each caller's own.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemm.errors import InputError

__all__ = ["is_disk_full", "whole_folder"]


def is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _any_folder(path: Path) -> None:
    """The rule of those who write into a folder of their own."""


@contextmanager
def whole_folder(path: str | os.PathLike[str], may_replace: Callable[[Path], None] = _any_folder) -> Iterator[Path]:
    """A folder to fill.  `may_replace` is called with what stands there, before the work and after it, and raises its
    own error where that is to stay; links and files always do."""
    destination = Path(os.path.abspath(path))
    _check(destination, may_replace)
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(destination, ".partial")
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would hide it from a colleague, and some libraries write their files so
        yield folder
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(0o644)
        _check(destination, may_replace)
        _take_the_name(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(destination: Path, may_replace: Callable[[Path], None]) -> None:
    if not os.path.lexists(destination):
        return
    may_replace(destination)
    if destination.is_symlink() or not destination.is_dir():
        raise InputError(f"{destination}: exists and is no folder, so it will not be replaced")


def _take_the_name(folder: Path, destination: Path) -> None:
    if not os.path.lexists(destination):
        os.rename(folder, destination)
        return
    aside = _beside(destination, ".old")
    try:
        os.rename(destination, aside)
        os.rename(folder, destination)
    finally:
        if os.path.lexists(destination):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, destination)


def _beside(destination: Path, suffix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=suffix, dir=destination.parent))
