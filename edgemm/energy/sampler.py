"""A thread that reads sensors at a stated rate and remembers when; joules are worked out afterwards, by trace.py.

Time is the monotonic clock's, which setting the date does not move.  A clock that goes back all the same, a reading
that fails and a thread that came too late are counted, and told by `problems()`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError

__all__ = ["RATE_HZ", "Sampler", "Energy", "energy_between"]

RATE_HZ = 20.0
GAP_INTERVALS = 10  # more than this many samples missing in a row leave no number


class _Trace:
    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.times: list[float] = []
        self.values: list[float] = []
        self.failures = 0
        self.reason = ""  # of the last failure


class Sampler:
    """Use it as a context manager.  `mark()` samples at once, so that work begins and ends on a sample."""

    def __init__(
        self,
        sensors: Sequence[Sensor],
        rate_hz: float = RATE_HZ,
        clock: Callable[[], float] = time.monotonic,
        each_second: Callable[[], None] | None = None,
    ) -> None:
        self.sensors = tuple(sensors)
        self.rate_hz = rate_hz
        self._clock = clock
        self._each_second = each_second  # called by the thread, for what changes slowly
        self._traces = [_Trace(sensor) for sensor in sensors]
        self._clock_back = 0
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        if self._traces or self._each_second:
            self._thread = threading.Thread(target=self._run, name="energy sampler", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)
        for sensor in self.sensors:
            sensor.close()

    def mark(self) -> float:
        """Reads every sensor now; the time at which it did."""
        with self._reading:
            now = self._clock()
            for trace in self._traces:
                self._read(trace, now)
            return now

    def energy(self, start_s: float, end_s: float) -> Energy:
        """All sensors together; one that has no number leaves none, for part of a sum would read as the whole."""
        if not self._traces:
            return Energy(None, 0, "no sensor")
        with self._reading:
            parts = [(trace, self._between(trace, start_s, end_s)) for trace in self._traces]
        problems = [f"{trace.sensor.source}: {part.problem}" for trace, part in parts if part.joules is None]
        if problems:
            return Energy(None, 0, "; ".join(problems))
        return Energy(sum(part.joules or 0.0 for _, part in parts), min(part.samples for _, part in parts))

    def problems(self) -> list[str]:
        found = [
            f"{trace.sensor.source}: {trace.failures} of {trace.failures + len(trace.times)} readings failed, "
            f"the last because {trace.reason}"
            for trace in self._traces
            if trace.failures
        ]
        if self._clock_back:
            found.append(f"the clock went back at {self._clock_back} readings; those samples do not count")
        return found

    def _between(self, trace: _Trace, start_s: float, end_s: float) -> Energy:
        gap_s = GAP_INTERVALS / self.rate_hz
        found = energy_between(trace.times, trace.values, trace.sensor.counts, start_s, end_s, gap_s)
        if found.joules is None and trace.failures:
            return Energy(None, found.samples, f"{found.problem} ({trace.reason})")
        return found

    def _read(self, trace: _Trace, now: float) -> None:
        if trace.times and now <= trace.times[-1]:
            self._clock_back += now < trace.times[-1]
            return
        try:
            value = trace.sensor.read()
        except MissingError as error:
            trace.failures += 1
            trace.reason = str(error)
            return
        trace.times.append(now)
        trace.values.append(value)

    def _run(self) -> None:
        ticks = max(1, round(self.rate_hz))
        for tick in itertools.count(1):
            if self._stop.wait(1 / self.rate_hz):
                return
            self.mark()
            if self._each_second and tick % ticks == 0:
                self._each_second()


# Samples of one sensor to joules between two moments: arrays in, a number or a reason out.
#
# Watts are integrated by the trapezoid rule, counters are subtracted; both are interpolated where a moment falls
# between two samples.  Where samples are missing there is no number.


@dataclass(frozen=True)
class Energy:
    """Joules, or the reason why there are none."""

    joules: float | None
    samples: int  # it rests on
    problem: str = ""


def energy_between(
    times: Sequence[float], values: Sequence[float], counts: bool, start_s: float, end_s: float, longest_gap_s: float
) -> Energy:
    """`times` rise; `values` are joules since some beginning where `counts`, else watts."""
    if not end_s > start_s:
        return Energy(None, 0, f"the clock went from {start_s:.3f} s to {end_s:.3f} s")
    t, v = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)  # (n,), (n,)
    inside = (t >= start_s) & (t <= end_s)
    count = int(inside.sum())
    if not t.size or t[0] > start_s or t[-1] < end_s:
        return Energy(None, count, "no sample at the beginning or the end of the work")
    first, last = np.searchsorted(t, start_s, "right") - 1, np.searchsorted(t, end_s, "left")
    gap = float(np.diff(t[first : last + 1]).max(initial=0.0))
    if gap > longest_gap_s:
        return Energy(None, count, f"no sample for {gap:.2f} s")
    edges = np.interp([start_s, end_s], t, v)
    if counts:
        joules = float(edges[1] - edges[0])
    else:
        within = (t > start_s) & (t < end_s)
        at = np.concatenate([[start_s], t[within], [end_s]])
        watts = np.concatenate([edges[:1], v[within], edges[1:]])
        joules = float(((watts[1:] + watts[:-1]) * np.diff(at)).sum() / 2)
    if not joules > 0:
        return Energy(None, count, f"the sensor says {joules:g} J for {end_s - start_s:.3g} s: it moves too slowly")
    return Energy(joules, count)
