"""The command line's one display: on a terminal a status line and bars, in a log a plain line now and then.

Both come on stderr, once somebody has waited, and leave nothing behind.  Lines for good stay: on stderr, or on stdout
where a verb says that they are its results.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgemm import progress

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Display"]

PATIENCE_S = 1.0  # what is over sooner is not drawn
REDRAW_S = 0.1
LOOK_S = 0.5  # so often a terminal is drawn where nobody says anything new
SILENCE_S = 30.0  # a log hears so often what is being done
ROOM = len(" [00:00:00]") + 1  # columns behind a status
IS_FIRST = "RANK"  # of several processes, which a launcher numbers, the first one speaks


class Display(progress.Listener):
    """A context manager: listens until it is left.  `forced` draws bars at once, whether there is a terminal or not."""

    def __init__(self, results: bool = False, forced: bool = False) -> None:
        self.stream, self.lines = sys.stderr, sys.stdout if results else sys.stderr
        self.forced = forced
        self.live = forced or self.stream.isatty()
        self.text, self.began_s = "", time.monotonic()
        self.bars: dict[progress.Bar | None, tqdm | None] = {}  # None: the status line; a log draws none of them
        self.drawing, self.over = threading.RLock(), threading.Event()
        self.watch: threading.Thread | None = None

    # What is heard

    def status(self, text: str) -> None:
        with self.drawing:
            self.text = text
            if not text:
                self._close(None)
            elif None not in self.bars:
                self._open(None, bar_format="{desc} [{elapsed}]")
            self._draw(None)

    def line(self, text: str) -> None:
        with self.drawing:
            if self.live:
                from tqdm import tqdm

                with tqdm.external_write_mode(file=self.lines):
                    print(text, file=self.lines, flush=True)
            else:
                print(text, file=self.lines, flush=True)

    def began(self, bar: progress.Bar) -> None:
        with self.drawing:
            total = None if bar.total is None else round(bar.total)
            self._open(bar, desc=bar.what, total=total, initial=round(bar.done), unit=bar.unit or "it")

    def moved(self, bar: progress.Bar) -> None:
        with self.drawing:
            self._draw(bar)

    def ended(self, bar: progress.Bar) -> None:
        with self.drawing:
            self._close(bar)

    # What is shown

    def _open(self, bar: progress.Bar | None, **options: Any) -> None:
        self.bars[bar] = self._drawn(options) if self.live else None
        if self.watch is None:
            self.watch = threading.Thread(target=self._look, name="display", daemon=True)
            self.watch.start()

    def _drawn(self, options: dict[str, Any]) -> tqdm:
        from tqdm import tqdm

        delay, interval = (0.0, 0.0) if self.forced else (PATIENCE_S, REDRAW_S)
        leave = not self.stream.isatty()  # there it could not be wiped away
        how = {"delay": delay, "mininterval": interval, "miniters": 0, "leave": leave, "dynamic_ncols": not leave}
        return tqdm(file=self.stream, **how, **options)

    def _draw(self, bar: progress.Bar | None) -> None:
        drawn = self.bars.get(bar)
        if drawn is None:
            return
        if bar is None:
            drawn.set_description_str(self.text[: shutil.get_terminal_size().columns - ROOM], refresh=False)
        else:
            drawn.set_postfix_str(bar.note, refresh=False)
        drawn.update(0 if bar is None else round(bar.done) - drawn.n)

    def _close(self, bar: progress.Bar | None) -> None:
        drawn = self.bars.pop(bar, None)
        if drawn is not None:
            drawn.close()

    def _look(self) -> None:
        """The watch's own thread: the work may be in one long call that says nothing."""
        with suppress(OSError, ValueError):  # nobody reads stderr any more
            while not self.over.wait(LOOK_S if self.live else SILENCE_S):
                self.remind()

    def remind(self) -> None:
        """Draw again, or tell the log."""
        with self.drawing:
            if self.live:
                for bar in self.bars:
                    self._draw(bar)
            elif self.bars:
                print(f"{self._told()} ({time.monotonic() - self.began_s:.0f} s)", file=self.stream, flush=True)

    def _told(self) -> str:
        told = [self.text] if self.text else []
        for bar in self.bars:
            if bar is not None:
                of = "" if bar.total is None else f" of {bar.total:.0f}"
                told.append(
                    f"{bar.what}: {bar.done:.0f}{of} {bar.unit}".rstrip() + (f", {bar.note}" if bar.note else "")
                )
        return "; ".join(told)

    def __enter__(self) -> Display:
        self.heard = progress.listening(progress.Listener() if os.environ.get(IS_FIRST, "0") != "0" else self)
        self.heard.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.heard.__exit__(*how)
        self.over.set()
        with self.drawing:
            for bar in list(self.bars)[::-1]:
                self._close(bar)
        if self.watch:
            self.watch.join(LOOK_S)  # it may wait for a reader of stderr
