"""A bar on stderr for whoever waits longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["ProgressBar"]

PATIENCE_S = 1.0
REDRAW_S = 0.1  # a forced bar draws every update
WIDTH = 30


class ProgressBar:
    """Draws on a terminal after a second, or always and at once when `forced`; leaving it wipes it away."""

    def __init__(self, what: str, unit: str = "", forced: bool = False) -> None:
        self.what, self.unit, self.forced = what, unit, forced
        self.wanted = forced or sys.stderr.isatty()
        self.next_draw_s = time.monotonic() + (0 if forced else PATIENCE_S)
        self.drawn = False

    def update(self, done: float, total: float) -> None:
        if not self.wanted or time.monotonic() < self.next_draw_s:
            return
        filled = int(WIDTH * done / max(total, 1))
        sys.stderr.write(f"\r{self.what} [{'#' * filled}{'.' * (WIDTH - filled)}] {done:.0f}/{total:.0f}{self.unit}")
        sys.stderr.flush()
        self.drawn, self.next_draw_s = True, time.monotonic() + (0 if self.forced else REDRAW_S)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.drawn:
            sys.stderr.write("\r\033[K" if sys.stderr.isatty() else "\n")
            sys.stderr.flush()
