"""A progress bar for whoever waits: on stderr, only on a terminal, only after a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["progress"]

Item = TypeVar("Item")
PATIENCE_S = 1.0
REDRAW_S = 0.1
WIDTH = 30


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass `items` on, drawing a bar once a second has gone by."""
    if not sys.stderr.isatty():
        yield from items
        return
    drawn, next_draw = False, time.monotonic() + PATIENCE_S
    try:
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() >= next_draw:
                filled = WIDTH * done // max(total, 1)
                sys.stderr.write(f"\r{what} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}")
                sys.stderr.flush()
                drawn, next_draw = True, time.monotonic() + REDRAW_S
    finally:
        if drawn:
            sys.stderr.write("\r\033[K")
