"""A file that is opened once: what was hashed is what is read, whatever becomes of its name meanwhile.

Replacing or deleting it changes nothing for whoever holds it.  Writing into it, or cutting it, is noticed: a file whose
state (fstat) is another than when it was hashed is hashed again.  It is read, never mapped: a mapped file that is cut
ends the process (SIGBUS).  What a hash should be is not known here: see bundle.py.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import os
import stat
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edgemm.bundle.files import reading
from edgemm.errors import BundleError

__all__ = ["AT_ONCE", "FileHashes", "HeldFile", "files_at_once", "same_file"]

CHUNK_BYTES = 1 << 21  # stays in a core's own cache between being read and being hashed
AT_ONCE = 4  # files that are hashed side by side
LARGE_BYTES = 1 << 20  # what takes a millisecond
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe is opened at once, and then seen to be one

Tell = Callable[[int], None]  # bytes that were hashed just now


def same_file(state: os.stat_result) -> tuple[int, ...]:
    """What stays as long as nobody writes: device, inode, size, and the times of content and state."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


class HeldFile:
    """Safe to share between threads; closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        """BundleError where it is not there, or no regular file; links are not followed."""
        with reading(path, "", BundleError):
            self._folder = os.open(path.parent, FLAGS | os.O_DIRECTORY)
            weakref.finalize(self, os.close, self._folder)
            self._handle = os.open(path.name, FLAGS | os.O_NOFOLLOW, dir_fd=self._folder)
            weakref.finalize(self, os.close, self._handle)
        self.path = path
        state = os.fstat(self._handle)
        if not stat.S_ISREG(state.st_mode):
            raise BundleError(f"{path}: is not a regular file")
        self.size_bytes = state.st_size
        self._hashed: tuple[tuple[int, ...], str] | None = None

    def sha256(self, tell: Tell | None = None) -> str:
        """In hexadecimal digits; `tell` may raise."""
        state, digest = same_file(os.fstat(self._handle)), hashlib.sha256()
        buffer = memoryview(bytearray(min(CHUNK_BYTES, self.size_bytes)))
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            chunk = buffer[: min(CHUNK_BYTES, self.size_bytes - start)]
            self.read_into(chunk, start)
            digest.update(chunk)
            if tell:
                tell(len(chunk))
        found = digest.hexdigest()
        if self._hashed is None or self._hashed[1] == found:  # what it was at first is what it has to be, for good
            self._hashed = state, found
        return found

    @property
    def verified_sha256(self) -> str | None:
        """What it was hashed to; None where it was not."""
        return self._hashed[1] if self._hashed else None

    def content(self) -> memoryview:
        """A copy of its own; BundleError where the file is not what it was when it was hashed."""
        whole = memoryview(bytearray(self.size_bytes))
        self.read_into(whole, 0)
        if self._hashed and self._hashed[0] != same_file(os.fstat(self._handle)):
            self._refuse_unless(hashlib.sha256(whole).hexdigest())
        return whole

    def check(self) -> None:
        """BundleError where the file is not what it was when it was hashed."""
        if self._hashed and self._hashed[0] != same_file(os.fstat(self._handle)):
            self._refuse_unless(self.sha256())

    def is_in_place(self) -> bool:
        """Whether its name, in the folder that it was opened in, is still its own."""
        try:
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return False
        return same_file(found) == same_file(os.fstat(self._handle))

    @property
    def folder(self) -> str:
        """The folder that it was opened in, whatever it is called by now, where the system has a name for that."""
        pinned = f"/proc/self/fd/{self._folder}"
        return pinned if os.path.isdir(pinned) else str(self.path.parent)

    @property
    def mapped_name(self) -> str:
        """How the system calls it among a process's mappings, "" where it does not say."""
        try:
            return os.readlink(f"/proc/self/fd/{self._handle}").replace("\n", "\\012")
        except OSError:
            return ""

    def _refuse_unless(self, found: str) -> None:
        if self._hashed and found != self._hashed[1]:
            raise BundleError(f"{self.path}: was altered after it was verified; copy or export the bundle again")

    def fileno(self) -> int:
        return self._handle

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills it with the bytes from `start` on; BundleError where there are fewer."""
        at = 0
        with reading(self.path, kind=BundleError):
            while at < len(buffer):
                count = os.preadv(self._handle, [buffer[at:]], start + at)
                if not count:
                    raise BundleError(f"{self.path}: was cut while it was read; copy or export the bundle again")
                at += count


# SHA-256 of files in threads of their own: hashing leaves Python's lock alone, so the caller goes on meanwhile.


def files_at_once(threads: int | None) -> int:
    """How many to hash beside other work: one core, of those that may be used, is for that."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(AT_ONCE, (threads or allowed) - 1))


class FileHashes:
    """Hashes in the making.  Each file is read once; leaving the `with` ends what nobody waits for any more.

    Threads of its own, because importing Python's pools takes longer than hashing 10 MB.
    """

    def __init__(self, at_once: int = AT_ONCE, tell: Tell | None = None) -> None:
        self.held: dict[Path, HeldFile] = {}
        self._at_once, self._tell = at_once, tell
        self._changed = threading.Condition()  # of all that follows
        self._waiting: deque[Path] = deque()
        self._found: dict[Path, str | Exception] = {}
        self._started = self._left = self._working = 0  # threads
        self._ended = False

    def begin(self, file: Path) -> None:
        """BundleError where it cannot be opened."""
        if file in self.held:
            return
        self.held[file] = HeldFile(file)
        with self._changed:
            self._waiting.append(file)
            if self._started - self._left < self._at_once:
                with contextlib.suppress(RuntimeError, MemoryError):  # then who asks for it computes it
                    # not threading.Thread, whose start() waits without end for a thread that dies for want of memory
                    _thread.start_new_thread(self._work, ())
                    self._started += 1

    def begin_weights(self, bundle: Path) -> None:
        """A bundle's large files, before its manifest is read: whatever that says, they will be asked for."""
        sizes: dict[Path, int] = {}
        for file in bundle.glob("components/*/*"):
            state = file.lstat()
            if stat.S_ISREG(state.st_mode) and state.st_size >= LARGE_BYTES:
                sizes[file] = state.st_size
        for file in sorted(sizes, key=lambda file: -sizes[file]):
            self.begin(file)

    def sha256(self, file: Path) -> str:
        """In hexadecimal digits, once it is there; who would only wait computes what nobody has begun, last first."""
        self.begin(file)
        while self._compute(deque.pop):
            pass
        with self._changed:
            self._changed.wait_for(lambda: file in self._found or not self._working)
        found = self._found.get(file)
        if found is None:  # its thread died
            return self.held[file].sha256(self._hashed)
        if isinstance(found, Exception):
            raise found
        return found

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._working)

    def _work(self) -> None:
        with self._changed:
            self._working += 1
        try:
            with contextlib.suppress(Exception):
                while self._compute(deque.popleft):
                    pass
        finally:
            with self._changed:
                self._working, self._left = self._working - 1, self._left + 1
                self._changed.notify_all()

    def _compute(self, take: Callable[[deque[Path]], Path]) -> bool:
        """The hash of one more file; False where none waits."""
        with self._changed:
            if not self._waiting:
                return False
            file = take(self._waiting)
        found: str | Exception
        try:
            found = self.held[file].sha256(self._hashed)
        except Exception as error:  # is told to who asks
            found = error
        with self._changed:
            self._found[file] = found
            self._changed.notify_all()
        return True

    def _hashed(self, size: int) -> None:
        if self._ended:
            raise InterruptedError("nobody waits for this hash any more")
        if self._tell:
            self._tell(size)
