"""A thread that reads sensors at a stated rate and remembers when; joules are worked out afterwards, by trace.py.

Time is the monotonic clock's, which setting the date does not move.  A clock that goes back all the same, a reading
that fails and a thread that came too late are counted, and told by `problems()`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from edgemm.errors import MissingError
from edgemm.measure.energy.sensor import Sensor
from edgemm.measure.energy.trace import Energy, energy_between

__all__ = ["RATE_HZ", "Sampler"]

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
