"""SHA-256 of files in threads of their own: hashing leaves Python's lock alone, so the caller goes on meanwhile.

It knows paths and bytes, never what a hash should be: see bundle.py.
"""

from __future__ import annotations

import hashlib
import mmap
import stat
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

__all__ = ["AT_ONCE", "FileHashes"]

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
