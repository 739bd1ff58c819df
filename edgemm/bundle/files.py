"""A folder that is whole or not there: written under another name beside its destination, renamed when the block ends.

    with whole_folder(Path("runs/x/checkpoint"), may_replace) as folder:
        ...                                                      # everything goes to `folder`

Whatever goes wrong in the block, Ctrl-C included, what stood there before stands there still, and nothing else is left.
A kill leaves `.NAME.*.partial` beside it, and between the two renames of a replacement the old folder as `.NAME.*.old`:
the next writer of the same name takes the first away and puts the second back.  What belongs to a process that lives is
told by its lock (flock), which dies with it.  What may be replaced, and what to say of a full disk, is each caller's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.errors import InputError, ResourceError

__all__ = [
    "AT_ONCE",
    "FileHashes",
    "is_disk_full",
    "only_writer",
    "read_result",
    "telling_name",
    "whole_folder",
    "write_whole",
    "written_beside",
]


STAGES = ("codes", "autoencode", "read", "draw", "edit", "joint")  # what recipes call theirs


def is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def telling_name(folder: Path) -> str:
    """What tells a checkpoint from others: "style" of runs/style/checkpoint, "a-draw" of runs/a/draw/checkpoint."""
    path = Path(os.path.abspath(folder))
    if path.name == "checkpoint" and path.parent.name:
        path = path.parent
        if path.name in STAGES and path.parent.name:
            return f"{path.parent.name}-{path.name}"
    return path.name


def _any_folder(path: Path) -> None:
    """The rule of those who write into a folder of their own."""


@contextmanager
def whole_folder(path: str | os.PathLike[str], may_replace: Callable[[Path], None] = _any_folder) -> Iterator[Path]:
    """A folder to fill.  `may_replace` is called with what stands there, before the work and after it, and raises its
    own error where that is to stay; links and files always do."""
    destination = Path(os.path.abspath(path))
    put_in_order(destination)
    _check(destination, may_replace)
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder, held = _new_folder(destination, ".partial")
    try:
        yield folder
        mode = folder.stat().st_mode & 0o666  # as the umask has it; some libraries write their files 0600
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        _check(destination, may_replace)
        _take_the_name(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


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
    held = _lock(destination)
    try:
        os.rename(destination, aside)
        os.rename(folder, destination)
    finally:
        if os.path.lexists(destination):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, destination)
        if held is not None:
            os.close(held)


def _beside(destination: Path, suffix: str) -> Path:
    """A name that nobody can foresee."""
    return destination.with_name(f".{destination.name}.{secrets.token_hex(8)}{suffix}")


def _new_folder(destination: Path, suffix: str) -> tuple[Path, int]:
    """An empty folder as the umask has it, and the lock that says its maker lives."""
    while True:
        folder = _beside(destination, suffix)
        folder.mkdir()
        held = _lock(folder)
        if held is not None and folder.is_dir():  # nobody took it away before it was locked
            return folder, held


def _lock(path: Path) -> int | None:
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
        held = _lock(path)
        if held is None:
            continue  # its writer lives
        try:
            if suffix == "old" and not os.path.lexists(destination):
                os.rename(path, destination)
                progress.line(f"{destination}: put back: a run was killed while it replaced it")
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                progress.line(f"{path}: left by a run that was killed; taken away")
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(held)


def _left_beside(destination: Path) -> list[tuple[Path, str]]:
    name = re.compile(rf"\.{re.escape(destination.name)}\.\w{{8,16}}\.(partial|old)")
    found = []
    with suppress(OSError), os.scandir(destination.parent) as entries:
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
    held = _lock(folder)
    if held is None:
        raise InputError(f"{folder}: {what} writes there now; wait for it, or choose another output")
    try:
        yield
    finally:
        os.close(held)


# SHA-256 of files in threads of their own: hashing leaves Python's lock alone, so the caller goes on meanwhile.
#
# It knows paths and bytes, never what a hash should be: see bundle.py.

CHUNK_BYTES = 1 << 26  # between two of them a thread waits for Python's lock
AT_ONCE = 4  # files that are hashed side by side
LARGE_BYTES = 1 << 20  # what takes a millisecond

Tell = Callable[[int], None]  # bytes that were hashed just now


class FileHashes:
    """Hashes in the making.  Each file is read once; leaving the `with` ends what nobody waits for any more."""

    def __init__(self, at_once: int = AT_ONCE, tell: Tell | None = None) -> None:
        self._pool = ThreadPoolExecutor(at_once)
        self._tell = tell
        self._begun: dict[Path, Future[str]] = {}
        self._ended = False

    def begin(self, file: Path) -> Future[str]:
        """Its hash, in hexadecimal digits, once it is there."""
        if file not in self._begun:
            self._begun[file] = self._pool.submit(self._sha256, file)
        return self._begun[file]

    def begin_weights(self, bundle: Path) -> None:
        """A bundle's large files, before its manifest is read: whatever that says, they will be asked for."""
        sizes: dict[Path, int] = {}
        for file in bundle.glob("components/*/*"):
            state = file.lstat()
            if stat.S_ISREG(state.st_mode) and state.st_size >= LARGE_BYTES:
                sizes[file] = state.st_size
        for file in sorted(sizes, key=lambda file: -sizes[file]):
            self.begin(file)

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self._pool.shutdown(cancel_futures=True)

    def _sha256(self, file: Path) -> str:
        found, size = hashlib.sha256(), file.stat().st_size
        if not size:  # nothing to map
            return found.hexdigest()
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            for start in range(0, len(whole), CHUNK_BYTES):
                if self._ended:
                    raise CancelledError
                with memoryview(whole)[start : start + CHUNK_BYTES] as chunk:
                    found.update(chunk)
                    if self._tell:
                        self._tell(len(chunk))
        return found.hexdigest()


# A result on the disk: written whole or not at all, and read again.
#
# A disk that is full is told with the right exit code, and nothing half written is left: the caller still has the
# result.

FIELDS = ("card", "plan", "rows", "measured")


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Text is written in UTF-8; the folder that the file is to lie in has to be there."""
    target = Path(os.path.abspath(path))
    try:
        with written_beside(target) as temporary, open(temporary, "rb+") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(f"{target}: the disk is full; this file was not kept") from error
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """An empty file to fill, of a name that nobody can foresee; it takes the target's name when the block ends well."""
    put_in_order(target)
    temporary = _beside(target, ".partial")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


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
