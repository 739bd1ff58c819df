"""Memory while a benchmark runs: this process's resident size ten times a second, and the card's where there is one.

A thread reads /proc/self/statm; NVML says what a card's memory holds.  What cannot be read is null, with the reason.
psutil would tell the first, and not a process's peak, so the kernel is asked for both.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemm.bench.workload import noise_picture
from edgemm.device.child import Answer, ask
from edgemm.device.gpu import gpu_number
from edgemm.device.machine import resident_bytes
from edgemm.energy.sensor import memory_used_bytes
from edgemm.errors import MissingError

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["MemoryWatch", "thinned", "drop_from_page_cache", "measure_fresh", "peak_memory_bytes"]

INTERVAL_S = 0.1
MOST_POINTS = 400


def thinned(points: list[Any], most: int = MOST_POINTS) -> list[Any]:
    """Evenly fewer, the first and the last kept."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


class MemoryWatch:
    """Use it as a context manager, then ask for `report()`."""

    def __init__(
        self,
        device: str,
        resident: Callable[[], int | None] = resident_bytes,
        card: Callable[[], int] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._resident, self._interval_s = resident, interval_s
        self._card = card or partial(memory_used_bytes, gpu_number(device))
        self._reason = "it runs on the CPU" if device == "cpu" else ""
        self._points: list[tuple[float, int]] = []
        self._card_bytes: list[int] = []
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._began = time.monotonic()
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._look()

    def report(self) -> dict[str, Any]:
        points = thinned(self._points)
        return {
            "resident": {"at_s": [round(at, 2) for at, _ in points], "bytes": [size for _, size in points]},
            "device_bytes": max(self._card_bytes) if self._card_bytes and not self._reason else None,
            "device_reason": self._reason or None,
        }

    def _follow(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        size = self._resident()
        if size is not None:
            self._points.append((time.monotonic() - self._began, size))
        if not self._reason:
            try:
                self._card_bytes.append(self._card())
            except MissingError as error:
                self._reason = str(error)


# What only a process that began just now can tell: cold load, first calls, peak memory.
#
# The child loads a bundle, reads a picture, writes a reply, draws, closes, notes its peak, and loads once more.  The
# parent drops the bundle's files from the page cache first, so that cold means read from the disk.


def measure_fresh(request: dict[str, Any], timeout_s: float) -> Answer:
    """`request` holds bundle, device, threads, reads_pictures, and what generate_text and generate_image are given."""
    drop_from_page_cache(Path(request["bundle"]))
    return ask("edgemm.bench.memory", [json.dumps(request)], timeout_s)


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files; it needs no rights, and may be refused without harm."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def peak_memory_bytes() -> int:
    """Largest resident size of this process since it began.

    On Linux ru_maxrss still counts the parent that was forked, so the kernel's own high-water mark is read.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    model, cold_ms = _load(request)
    first_call_ms = {}
    if request["text"]:
        pictures = [noise_picture()] if request["reads_pictures"] else []
        first_call_ms["text"] = model.generate_text(images=pictures, **request["text"]).metrics.total_ms
    if request["image"]:
        first_call_ms["image"] = model.generate_image(**request["image"]).metrics.total_ms
    model.release_memory()
    sizes = {"released_memory_bytes": resident_bytes()}
    model.close()
    sizes["closed_memory_bytes"] = resident_bytes()
    # Linux counts pages on each core: what it calls the largest may be 100 KB below what it told before.
    sizes["peak_memory_bytes"] = max(peak_memory_bytes(), *filter(None, sizes.values()))
    del model
    warm_ms = _load(request)[1]
    known = {name: size for name, size in sizes.items() if size is not None}
    return {"load_cold_ms": cold_ms, "load_warm_ms": warm_ms, **known, "first_call_ms": first_call_ms}


def _load(request: dict[str, Any]) -> tuple[Model, float]:
    import edgemm

    started = time.perf_counter()
    model = edgemm.load(request["bundle"], device=request["device"], threads=request["threads"])
    model.prepare()
    return model, (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
