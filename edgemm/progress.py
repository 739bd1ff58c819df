"""What is being done right now, from whoever does it to whoever shows it.

    progress.status("tracing transformer, 2 of 5")       # until the next one; "" when it is over
    progress.line("transformer cpu-int4: as torch has it")  # for good
    for step in progress.track(range(300), 300, "aligning", "steps"): ...
    with progress.bar("hashing", 512.0, "MB") as bar:
        bar.update(1.5)

Nobody listens unless `listening` says so: a program that uses edgemm as a library hears nothing.  The command line's
listener is the Display below.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar", "Display", "Listener", "bar", "line", "listening", "shown", "status", "track"]

Item = TypeVar("Item")


class Listener:
    """Hears what is said inside `listening`, from any thread, one call at a time; this one does nothing about it."""

    def status(self, text: str) -> None: ...
    def line(self, text: str) -> None: ...
    def began(self, bar: Bar) -> None: ...
    def moved(self, bar: Bar) -> None: ...
    def ended(self, bar: Bar) -> None: ...


@dataclass(eq=False)
class Bar:
    """Work of a known size; `done` and `total` are in `unit`, and a total of None is not known."""

    what: str
    total: float | None
    unit: str
    done: float
    listener: Listener
    note: str = ""  # what there is to say of it besides

    def update(self, amount: float = 1, note: str | None = None) -> None:
        with _ONE_AT_A_TIME:
            self.done += amount
            self.note = self.note if note is None else note
            self.listener.moved(self)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    """A stranger's text on a terminal, or in a log that ends on one: what would command it is spelled out."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


# A stack of the whole process, for threads that hash or serve do not inherit context variables.
_LISTENERS = [Listener()]
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """`listener` hears everything until the block ends, in place of whoever listened before."""
    with _ONE_AT_A_TIME:
        _LISTENERS.append(listener)
    try:
        yield
    finally:
        with _ONE_AT_A_TIME:
            _LISTENERS.remove(listener)


def status(text: str) -> None:
    with _ONE_AT_A_TIME:
        _LISTENERS[-1].status(shown(text))


def line(text: str) -> None:
    with _ONE_AT_A_TIME:
        _LISTENERS[-1].line(shown(text))


@contextmanager
def bar(what: str, total: float | None, unit: str = "", done: float = 0) -> Iterator[Bar]:
    """`done` is what was done before, by a run that is resumed."""
    with _ONE_AT_A_TIME:
        begun = Bar(what, total, unit, done, _LISTENERS[-1])
        begun.listener.began(begun)
    try:
        yield begun
    finally:
        with _ONE_AT_A_TIME:
            begun.listener.ended(begun)


def track(items: Iterable[Item], total: float | None, what: str, unit: str = "") -> Iterator[Item]:
    """Passes `items` on; each is done when the next one is asked for."""
    with bar(what, total, unit) as begun:
        for item in items:
            yield item
            begun.update()


# The command line's one display: on a terminal a status line and bars, in a log a plain line now and then.  Both come
# on stderr, once somebody has waited, and leave nothing behind.  Lines for good stay: on stderr, or on stdout where a
# verb says that they are its results.

PATIENCE_S = 1.0  # what is over sooner is not drawn
REDRAW_S = 0.1
LOOK_S = 0.5  # so often a terminal is drawn where nobody says anything new
SILENCE_S = 30.0  # a log hears so often what is being done
ROOM = len(" [00:00:00]") + 1  # columns behind a status
IS_FIRST = "RANK"  # of several processes, which a launcher numbers, the first one speaks


class Display(Listener):
    """A context manager: listens until it is left.  `forced` draws bars at once, whether there is a terminal or not."""

    def __init__(self, results: bool = False, forced: bool = False) -> None:
        self.stream, self.lines = sys.stderr, sys.stdout if results else sys.stderr
        self.forced = forced
        self.live = forced or self.stream.isatty()
        self.text, self.began_s = "", time.monotonic()
        self.bars: dict[Bar | None, tqdm | None] = {}  # None: the status line; a log draws none of them
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

    def began(self, bar: Bar) -> None:
        with self.drawing:
            total = None if bar.total is None else round(bar.total)
            self._open(bar, desc=bar.what, total=total, initial=round(bar.done), unit=bar.unit or "it")

    def moved(self, bar: Bar) -> None:
        with self.drawing:
            self._draw(bar)

    def ended(self, bar: Bar) -> None:
        with self.drawing:
            self._close(bar)

    # What is shown

    def _open(self, bar: Bar | None, **options: Any) -> None:
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

    def _draw(self, bar: Bar | None) -> None:
        drawn = self.bars.get(bar)
        if drawn is None:
            return
        if bar is None:
            import shutil

            drawn.set_description_str(self.text[: shutil.get_terminal_size().columns - ROOM], refresh=False)
        else:
            drawn.set_postfix_str(bar.note, refresh=False)
        drawn.update(0 if bar is None else round(bar.done) - drawn.n)

    def _close(self, bar: Bar | None) -> None:
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
        self.heard = listening(Listener() if os.environ.get(IS_FIRST, "0") != "0" else self)
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
