"""Components that take turns in memory, where a limit does not hold them all: what ran longest ago is closed.

A loop sees an engine as ever; its session is opened when a binding runs, and a binding that outlived its session is
tied anew.  What a component takes, with what it computes with, no file tells: so it first runs with all others closed,
and is looked at.  After that as many stay open as fit.  Every return of a closed one costs its load.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from edgemm.bundle.components import Variant
from edgemm.device.machine import give_back_memory, resident_bytes
from edgemm.runtimes.backend.engine import Arrays, Binding, LoadedEngine

__all__ = ["TurnTaker", "Turns"]


@dataclass(eq=False)
class Opened:
    """An engine, and what is tied to it."""

    engine: LoadedEngine
    tied: weakref.WeakKeyDictionary[TurnBinding, Binding] = field(default_factory=weakref.WeakKeyDictionary)


class Turns:
    """The engines of one model that are open, the one that ran last at the end."""

    def __init__(self, room_bytes: Callable[[], int]) -> None:
        self._room_bytes = room_bytes  # for all engines, at this moment
        self._open: dict[str, Opened] = {}
        self._sizes: dict[str, int] = {}  # component -> bytes, of those that have run
        self._lock = threading.RLock()

    def run(self, taker: TurnTaker, binding: TurnBinding) -> None:
        with self._lock:
            opened = self._open.pop(taker.component, None)
            self._make_room(taker.component)
            known = taker.component in self._sizes
            before = 0 if known else resident_bytes() or 0
            if opened is None:
                opened = Opened(taker.open_engine())
            self._open[taker.component] = opened
            if binding not in opened.tied:
                opened.tied[binding] = opened.engine.tie(binding.inputs, binding.outputs)
            opened.tied[binding].run()
            if not known:
                self._sizes[taker.component] = max(0, (resident_bytes() or 0) - before)

    def _make_room(self, component: str) -> None:
        """Closes what ran longest ago until the rest fits beside `component`; all, before that has run once."""
        closed = False
        while self._open and not self._fits(component):
            del self._open[next(iter(self._open))]
            closed = True
        if closed:
            give_back_memory()

    def _fits(self, component: str) -> bool:
        sizes = [self._sizes.get(one) for one in (component, *self._open)]  # one that failed has none
        return None not in sizes and sum(filter(None, sizes)) <= self._room_bytes()

    def close(self) -> None:
        with self._lock:
            self._open.clear()


class TurnTaker(LoadedEngine):
    """A component that is open when it runs."""

    def __init__(
        self,
        component: str,
        variant: Variant,
        lock: threading.Lock,
        turns: Turns,
        open_engine: Callable[[], LoadedEngine],
    ) -> None:
        super().__init__(component, variant, lock)
        self.turns, self.open_engine = turns, open_engine

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        return TurnBinding(self, inputs, outputs)


class TurnBinding:
    """Arrays for a component that may be closed meanwhile."""

    def __init__(self, taker: TurnTaker, inputs: Arrays, outputs: Arrays) -> None:
        self.taker, self.inputs, self.outputs = taker, inputs, outputs

    def run(self) -> None:
        self.taker.turns.run(self.taker, self)
