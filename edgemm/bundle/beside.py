"""What is being written lies beside its destination, under a name that nobody can foresee, until it is whole.

A kill leaves `.NAME.*.partial` there, and between the two renames of a replacement the old folder as `.NAME.*.old`: the
next writer of the same name takes the first away and puts the second back.  What belongs to a process that lives is
told by its lock (flock), which dies with it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgemm import progress
from edgemm.errors import InputError

__all__ = ["beside", "lock", "new_folder", "only_writer", "put_in_order", "written_beside"]


def beside(destination: Path, suffix: str) -> Path:
    """A name that nobody can foresee."""
    return destination.with_name(f".{destination.name}.{os.urandom(8).hex()}{suffix}")


def new_folder(destination: Path, suffix: str) -> tuple[Path, int]:
    """An empty folder as the umask has it, and the lock that says its maker lives."""
    while True:
        folder = beside(destination, suffix)
        folder.mkdir()
        held = lock(folder)
        if held is not None and folder.is_dir():  # nobody took it away before it was locked
            return folder, held


def lock(path: Path) -> int | None:
    """The open file, locked until it is closed; None where a living process has it, or it is a link, or gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass  # a file system without locks
    return handle


def put_in_order(destination: Path) -> None:
    """Ends what killed writers of the same name left half done: theirs goes, what they had set aside comes back."""
    for path, suffix in _left_beside(destination):
        held = lock(path)
        if held is None:
            continue  # its writer lives
        try:
            if suffix == "old" and not os.path.lexists(destination):
                os.rename(path, destination)
                progress.line(f"{destination}: put back: a run was killed while it replaced it")
            elif path.is_dir():
                import shutil

                shutil.rmtree(path, ignore_errors=True)
                progress.line(f"{path}: left by a run that was killed; taken away")
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(held)


def _left_beside(destination: Path) -> list[tuple[Path, str]]:
    name = re.compile(rf"\.{re.escape(destination.name)}\.\w{{8,16}}\.(partial|old)")
    found = []
    with suppress(OSError, ValueError), os.scandir(destination.parent) as entries:
        for entry in entries:
            match = name.fullmatch(entry.name)
            with suppress(OSError):
                if match and not entry.is_symlink() and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    found.append((destination.parent / entry.name, match[1]))
    return sorted(found)


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Held by one process at a time, for a folder that is filled over hours; another's attempt is an InputError.

    The lock lies in the folder's own open file, so there is nothing to leave behind, and a dead process holds nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if held is None:
        raise InputError(f"{folder}: {what} writes there now; wait for it, or choose another output")
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """An empty file to fill, of a name that nobody can foresee; it takes the target's name when the block ends well."""
    put_in_order(target)
    temporary = beside(target, ".partial")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)
