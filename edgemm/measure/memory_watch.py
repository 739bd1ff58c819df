"""Memory while a benchmark runs: this process's resident size ten times a second, and the card's where there is one.

A thread reads /proc/self/statm; NVML says what a card's memory holds.  What cannot be read is null, with the reason.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemm.errors import MissingError
from edgemm.measure.energy.nvml import memory_used_bytes
from edgemm.measure.machine import read_text

__all__ = ["MemoryWatch", "resident_bytes", "thinned"]

INTERVAL_S = 0.1
MOST_POINTS = 400


def resident_bytes(root: Path = Path("/")) -> int | None:
    pages = read_text(root / "proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 and pages[1].isdigit() else None


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
        card: Callable[[], int] = memory_used_bytes,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._resident, self._card, self._interval_s = resident, card, interval_s
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
