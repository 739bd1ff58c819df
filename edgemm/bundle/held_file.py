"""A file that is opened once: what was hashed is what is read, whatever becomes of its name meanwhile.

Replacing or deleting it changes nothing for whoever holds it.  Writing into it, or cutting it, is noticed: a file whose
state (fstat) is another than when it was hashed is hashed again.  It is read, never mapped: a mapped file that is cut
ends the process (SIGBUS).
"""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

from edgemm.bundle.reading import reading
from edgemm.errors import BundleError

__all__ = ["HeldFile", "same_file"]

CHUNK_BYTES = 1 << 25  # between two of them a thread waits for Python's lock


def same_file(state: os.stat_result) -> tuple[int, ...]:
    """What stays as long as nobody writes: device, inode, size, and the times of content and state."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


class HeldFile:
    """Safe to share between threads; closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        with reading(path, kind=BundleError):
            self._handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        self.path = path
        self.close = weakref.finalize(self, os.close, self._handle)
        state = os.fstat(self._handle)
        if not stat.S_ISREG(state.st_mode):
            raise BundleError(f"{path}: is not a regular file")
        self.size_bytes = state.st_size
        self._hashed: tuple[tuple[int, ...], str] | None = None

    def sha256(self, tell: Callable[[int], None] | None = None) -> str:
        """In hexadecimal digits; `tell` is called with bytes that were hashed just now, and may raise."""
        state, digest = same_file(os.fstat(self._handle)), hashlib.sha256()
        buffer = memoryview(bytearray(min(CHUNK_BYTES, self.size_bytes)))
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            chunk = buffer[: min(CHUNK_BYTES, self.size_bytes - start)]
            self._fill(chunk, start)
            digest.update(chunk)
            if tell:
                tell(len(chunk))
        found = digest.hexdigest()
        self._hashed = state, found
        return found

    def content(self) -> memoryview:
        """A copy of its own; BundleError where the file is not what it was when it was hashed."""
        whole = memoryview(bytearray(self.size_bytes))
        self._fill(whole, 0)
        if self._hashed and self._hashed[0] != same_file(os.fstat(self._handle)):
            found = hashlib.sha256(whole).hexdigest()
            if found != self._hashed[1]:
                raise BundleError(f"{self.path}: was altered after it was verified; copy or export the bundle again")
        return whole

    def _fill(self, buffer: memoryview, start: int) -> None:
        at = 0
        with reading(self.path, kind=BundleError):
            while at < len(buffer):
                count = os.preadv(self._handle, [buffer[at:]], start + at)
                if not count:
                    raise BundleError(f"{self.path}: was cut while it was read; copy or export the bundle again")
                at += count
