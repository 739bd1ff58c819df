"""A folder that is whole or not there: written under another name beside its destination, renamed when the block ends.

    with whole_folder(Path("runs/x/checkpoint"), may_replace) as folder:
        ...                                                      # everything goes to `folder`

Whatever goes wrong in the block, Ctrl-C included, what stood there before stands there still, and nothing else is left.
A kill leaves `.NAME.*.partial` beside it; a kill between the two renames of a replacement leaves the old folder under
`.NAME.*.old`.  What may be replaced, and what to say of a full disk, is each caller's own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgemm.bundle.reading import read_text
from edgemm.errors import InputError, ResourceError

__all__ = ["is_disk_full", "telling_name", "whole_folder", "AT_ONCE", "FileHashes", "read_result", "write_whole"]


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
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
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
    text = read_text(path, "a result of `edgemm bench`").strip()
    for candidate in (text, text.rpartition("\n")[2]):
        try:
            document = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and all(isinstance(document.get(field), dict) for field in FIELDS):
            return document
    raise InputError(f"{path}: its last line is not the JSON document that `edgemm bench` prints")
