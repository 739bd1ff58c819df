"""Parts of a file that a library maps while it loads become memory of this process alone: nobody else writes there.

ONNX Runtime maps weights and goes on reading those that it does not pack anew.  Whoever cuts the file then ends this
process (SIGBUS), and whoever writes into it changes the weights.  So once it has loaded, the bytes are copied and the
copy is moved to the same addresses, in one step of the kernel (mremap).  On Linux; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["own_mappings"]

FLAGS = ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_POPULATE")  # all pages at once: they are written next
PRIVATE = mmap.PROT_READ | mmap.PROT_WRITE, sum(getattr(mmap, name, 0) for name in FLAGS)
MREMAP_MAYMOVE_FIXED = 3
FAILED = ctypes.c_void_p(-1).value
_LOCKS: dict[str, threading.Lock] = {}


@contextmanager
def own_mappings(name: str) -> Iterator[None]:
    """What is mapped in here of the file that the system calls `name`; "" for none.

    Loads of one file take turns, so that what is seen at the end is of this one alone.
    """
    if sys.platform != "linux" or not name:
        yield
        return
    with _LOCKS.setdefault(name, threading.Lock()):
        before = set(_mappings(name))
        yield
        for start, end in _mappings(name):
            if (start, end) not in before:
                _copy(start, end - start)


def _mappings(name: str) -> list[tuple[int, int]]:
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def _copy(start: int, size: int) -> None:
    """Where the kernel has no memory for it, the mapping stays as it is."""
    libc = _libc()
    copy = libc.mmap(None, size, *PRIVATE, -1, 0)
    if copy != FAILED:
        ctypes.memmove(copy, start, size)
        libc.mremap(copy, size, size, MREMAP_MAYMOVE_FIXED, ctypes.c_void_p(start))


@cache
def _libc() -> Any:
    libc, size, pointer = ctypes.CDLL(None, use_errno=True), ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype, libc.mmap.argtypes = pointer, (pointer, size, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.mremap.restype, libc.mremap.argtypes = pointer, (pointer, size, size, ctypes.c_int, pointer)
    return libc
