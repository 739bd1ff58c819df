"""The calls in progress of one model: how each hears that it should end, from any thread or the clock."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from edgemm.errors import UsageError

__all__ = ["Calls"]

T = TypeVar("T")


class Calls:
    """Every stream that has begun and not ended."""

    def __init__(self) -> None:
        self._running: set[threading.Event] = set()
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Asks every call in progress to end; each hears it within one token or one denoising step."""
        with self._lock:
            running = tuple(self._running)
        for call in running:
            call.set()

    def run(self, start: Callable[[Callable[[], bool]], Iterator[T]], timeout_s: float | None) -> Iterator[T]:
        """The loop that `start` makes, given a `cancelled` that hears cancel() and the clock; time counts from now."""
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"timeout_s is {timeout_s}, expected above 0")
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        return self._run(start, deadline)

    def _run(self, start: Callable[[Callable[[], bool]], Iterator[T]], deadline: float) -> Iterator[T]:
        cancel = threading.Event()
        with self._lock:
            self._running.add(cancel)
        try:
            yield from start(lambda: cancel.is_set() or time.monotonic() >= deadline)
        finally:
            with self._lock:
                self._running.discard(cancel)
