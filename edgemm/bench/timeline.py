"""Engines with a clock on them: which component ran when, on what, seen from outside of any backend.

`model._engines.watch(clock.watch)` puts a watched engine in the place of each; a run costs two looks at the clock more.
The newest binding of every shape is kept with its arrays, so that a component can be run again alone, on real inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemm.runtimes.backend.engine import Arrays, Binding, Engine

__all__ = ["Bound", "EngineClock", "EngineRun", "trace_document"]

NAMED_AXES = ("b", "s", "T", "t", "m")


@dataclass(frozen=True)
class EngineRun:
    component: str
    shape: str  # sizes of its named axes, for example "b=1 s=128 T=256"
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Bound:
    """Arrays that a loop bound to a component; `run` runs it again on what they hold now."""

    component: str
    shape: str
    inputs: Arrays
    outputs: Arrays
    run: Callable[[], None]


@dataclass
class EngineClock:
    now: Callable[[], float] = time.perf_counter
    runs: list[EngineRun] = field(default_factory=list)
    works: list[EngineRun] = field(default_factory=list)  # what the caller did meanwhile, for a timeline
    bound: dict[tuple[str, str], Bound] = field(default_factory=dict)  # the newest of each component and shape

    def watch(self, engine: Engine) -> Engine:
        return _Watched(engine, self)

    def spent_s(self, start_s: float, end_s: float) -> float:
        """Seconds in engines between two moments; runs take turns, so they add up."""
        return sum(run.end_s - run.start_s for run in self._since(start_s) if run.end_s <= end_s)

    def _since(self, start_s: float) -> Iterable[EngineRun]:
        for run in reversed(self.runs):
            if run.start_s < start_s:
                return
            yield run


class _Watched:
    """An Engine; what it does not know itself is the real one's."""

    def __init__(self, engine: Engine, clock: EngineClock) -> None:
        self._engine = engine
        self._clock = clock
        self.component, self.inputs, self.outputs = engine.component, engine.inputs, engine.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def bind(self, inputs: Arrays, outputs: Arrays) -> Binding:
        binding = self._engine.bind(inputs, outputs)
        shape = _shape(self._engine, inputs)
        self._clock.bound[self.component, shape] = Bound(self.component, shape, inputs, outputs, binding.run)
        return _WatchedBinding(binding, self.component, shape, self._clock)


class _WatchedBinding:
    def __init__(self, binding: Binding, component: str, shape: str, clock: EngineClock) -> None:
        self._binding, self._component, self._shape, self._clock = binding, component, shape, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)

    def run(self) -> None:
        start_s = self._clock.now()
        self._binding.run()
        self._clock.runs.append(EngineRun(self._component, self._shape, start_s, self._clock.now()))


def _shape(engine: Engine, inputs: Arrays) -> str:
    sizes: dict[str, int] = {}
    for name, spec in engine.inputs.items():
        for entry, size in zip(spec.shape, inputs[name].shape):
            if isinstance(entry, str):
                sizes.setdefault(entry, size)
    return " ".join(f"{axis}={sizes[axis]}" for axis in NAMED_AXES if axis in sizes)


# A measurement as a timeline that Chrome and Perfetto open: the Trace Event Format, complete events ("ph": "X").
#
# Works of a benchmark stand in one lane, runs of engines in the next.  Times are microseconds since the first event.

LANES = {"work": 1, "engines": 2}


def trace_document(works: Sequence[EngineRun], engines: Sequence[EngineRun]) -> dict[str, Any]:
    begin_s = min((run.start_s for run in (*works, *engines)), default=0.0)
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
        for name, lane in LANES.items()
    ]
    events = [
        {
            "name": run.component,
            "cat": lane,
            "ph": "X",
            "pid": 1,
            "tid": LANES[lane],
            "ts": round((run.start_s - begin_s) * 1e6, 1),
            "dur": round((run.end_s - run.start_s) * 1e6, 1),
            "args": {"shape": run.shape} if run.shape else {},
        }
        for lane, runs in (("work", works), ("engines", engines))
        for run in runs
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}
