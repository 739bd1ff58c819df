"""What is being done right now, from whoever does it to whoever shows it.

    progress.status("tracing transformer, 2 of 5")       # until the next one; "" when it is over
    progress.line("transformer cpu-int4: as torch has it")  # for good
    for step in progress.track(range(300), 300, "aligning", "steps"): ...
    with progress.bar("hashing", 512.0, "MB") as bar:
        bar.update(1.5)

Nobody listens unless `listening` says so: a program that uses edgemm as a library hears nothing.  The command line's
listener is cli/display.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import TypeVar

__all__ = ["Bar", "Listener", "bar", "line", "listening", "status", "track"]

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


# A stack of the whole process, for threads that hash or serve do not inherit context variables.
_LISTENERS = [Listener()]
_ONE_AT_A_TIME = RLock()


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
        _LISTENERS[-1].status(text)


def line(text: str) -> None:
    with _ONE_AT_A_TIME:
        _LISTENERS[-1].line(text)


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
