"""Weights as ONNX Runtime's CPU kernels want them: packed once on this machine, then mapped by every process.

    <cache>/prepacked/<key>/graph.onnx    the graph after ONNX Runtime's own passes
    <cache>/prepacked/<key>/weights       what it and the kernels read, mapped, never copied
    <cache>/prepacked/<key>/record.json   SHA-256 of both, compared before anything runs

The key holds all that the packing depends on: ONNX Runtime's version, the processor, graph and weights.  Only verified
weights of LEAST_BYTES or more are kept, and only where the disk has FREE_TIMES as much room as an entry takes; the
longest unused ones go beyond LIMIT_BYTES.  It is done where EDGEMM_PREPACKED is 1: a process then owns half the memory,
and its load takes longer, for what was packed is hashed.  Nobody else may write there (device/cache_folder.py), so a
mapped file is as safe as memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgemm.bundle.held_file import HeldFile
from edgemm.device.cache_folder import cache_folder, check_private, make_private, open_private
from edgemm.device.machine import this_processor

__all__ = ["GRAPH", "SWITCH", "WEIGHTS", "keep", "load", "place_of"]

T = TypeVar("T")
SWITCH = "EDGEMM_PREPACKED"
GRAPH, WEIGHTS, RECORD = "graph.onnx", "weights", "record.json"
LEAST_BYTES = 32 << 20  # of weights: what is smaller is packed in a few hundredths of a second
TIMES_WEIGHTS = 2.2  # what an entry takes: weights as they were, and as kernels want them
FREE_TIMES = 10
LIMIT_BYTES = 4 << 30  # of all entries
LEFT_BEHIND_S = 3600  # after which a killed process's workshop goes


def place_of(graph: bytes | memoryview, weights: Mapping[str, HeldFile], version: str) -> Path | None:
    """Where the entry of a graph is, or would be; None where none is wanted."""
    size = sum(held.size_bytes for held in weights.values())
    hashes = {name: held.verified_sha256 for name, held in weights.items()}
    if os.environ.get(SWITCH) != "1" or size < LEAST_BYTES or None in hashes.values():
        return None
    words = [version, this_processor(), hashlib.sha256(graph).hexdigest(), json.dumps(hashes, sort_keys=True)]
    return cache_folder("prepacked") / hashlib.sha256("\n".join(words).encode()).hexdigest()


def load(place: Path, open_graph: Callable[[bytes, str], T]) -> T | None:
    """What `open_graph` makes of the graph and the folder of the weights, whose hash is compared meanwhile; None where
    there is no entry, or one that is not to be believed."""
    if not place.is_dir():
        return None
    try:
        check_private(place.parent)
        check_private(place)
        with open_private(place / RECORD) as stream:
            record = json.loads(stream.read(1 << 16))
        graph, weights = HeldFile(place / GRAPH), HeldFile(place / WEIGHTS)
        content = bytes(graph.content())
        if hashlib.sha256(content).hexdigest() != record[GRAPH] or weights.size_bytes != record["size_bytes"]:
            return None
        with contextlib.suppress(PermissionError):
            os.utime(place / RECORD)  # when it was last of use
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(weights.sha256)
            opened = open_graph(content, weights.folder)
        return opened if found.result() == record[WEIGHTS] and weights.is_in_place() else None
    except Exception:  # a library's, too: without an entry the weights are packed as ever
        return None


def keep(place: Path, size_bytes: int, make: Callable[[Path], None]) -> None:
    """An entry of what `make` leaves in a folder, GRAPH and WEIGHTS; none where there is no room, or it fails."""
    workshop = None
    try:
        make_private(place.parent)
        if shutil.disk_usage(place.parent).free < FREE_TIMES * TIMES_WEIGHTS * size_bytes:
            return
        workshop = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        make(workshop)
        held = {name: HeldFile(workshop / name) for name in (GRAPH, WEIGHTS)}
        record = {name: file.sha256() for name, file in held.items()} | {"size_bytes": held[WEIGHTS].size_bytes}
        (workshop / RECORD).write_text(json.dumps(record))
        shutil.rmtree(place, ignore_errors=True)  # it was not believed
        os.rename(workshop, place)
        _evict(place)
    except Exception:  # as above
        return
    finally:
        if workshop is not None:
            shutil.rmtree(workshop, ignore_errors=True)


def _evict(kept: Path) -> None:
    """What is longest of no use, until the rest fits, and what killed processes left."""
    sizes: dict[Path, tuple[float, int]] = {}
    for entry in kept.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be evicting, too
            if entry.name.startswith("."):
                if time.time() - entry.stat().st_mtime > LEFT_BEHIND_S:
                    shutil.rmtree(entry, ignore_errors=True)
            else:
                sizes[entry] = (entry / RECORD).stat().st_mtime, (entry / WEIGHTS).stat().st_size
    total = sum(size for _, size in sizes.values())
    for entry in sorted(sizes, key=lambda entry: sizes[entry]):
        if total > LIMIT_BYTES and entry != kept:
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry][1]
