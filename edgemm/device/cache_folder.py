"""Folders of this machine's own, under ~/.cache/edgemm or EDGEMM_CACHE: built engines, verdicts on bundles.

What is found there is believed, because its hash lies beside it.  So only its owner, or root, may write there; no link
is followed, and what is no plain file is refused, never waited for.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgemm.bundle.files import reading
from edgemm.errors import InputError

__all__ = ["cache_folder", "check_private", "locked", "make_private", "open_private"]

POLL_S = 0.2
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe is opened at once, and then seen to be one


def cache_folder(name: str) -> Path:
    given = os.environ.get("EDGEMM_CACHE")
    if given:
        return Path(given) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemm" / name


def make_private(folder: Path) -> None:
    """The folder, made where it is not there, whatever the umask; InputError where others may write in it."""
    with reading(folder, "no place for a cache (EDGEMM_CACHE names another)"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """InputError where anybody but its owner, who is this user or root, could have put something in the folder."""
    with reading(folder, "is no cache"):
        real = folder.resolve(strict=True)
        state = real.stat()
    if not stat.S_ISDIR(state.st_mode):
        raise InputError(f"{folder}: is no folder")
    if state.st_uid not in (0, os.geteuid()) or state.st_mode & OTHERS_WRITE:
        raise InputError(
            f"{folder}: others may write there (owner {state.st_uid}, mode {stat.S_IMODE(state.st_mode):o}), so "
            "nothing in it is believed; empty it and chmod go-w, or name another folder in EDGEMM_CACHE"
        )
    for parent in real.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise InputError(f"{folder}: anybody may replace it, because {parent} is open to all; chmod o-w {parent}")


def open_private(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """A plain file of this user or root; OSError where it is a link or not there, InputError where it is another's.

    Its folder was checked: nobody else reaches what is in it."""
    handle = os.open(path, flags | PLAIN, 0o600)
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_uid not in (0, os.geteuid()):
        os.close(handle)
        raise InputError(f"{path}: no plain file, or another user's")
    return os.fdopen(handle, "rb" if flags == os.O_RDONLY else "rb+")


@contextmanager
def locked(path: Path, waiting: Callable[[float], None]) -> Iterator[None]:
    """Held by one process at a time; `waiting` is told the seconds so far.  The file stays as it is, and empty."""
    began = time.monotonic()
    with reading(path, "cannot be locked"):
        handle = open_private(path, os.O_RDWR | os.O_CREAT)
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting(time.monotonic() - began)
                time.sleep(POLL_S)
        yield
