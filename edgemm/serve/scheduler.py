"""One scheduler a device: who runs next, one token or one denoising step at a time.

A thread of its own does all the work, in turns: a turn of the text lane gives every reply in it its next token, a turn
of the drawing lane does one denoising step.  While both have work each gets its share of the time (stride scheduling,
Waldspurger and Weihl 1995); alone, either gets all.  Who cancels is heard before the next turn, queued or running, and
nobody else notices.  It knows jobs and turns, never HTTP, strings or pixels.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from edgemm.serve.problems import Problem, busy

__all__ = ["Job", "Lane", "Lanes", "Scheduler", "Ticket", "Turns"]

LOG = logging.getLogger(__name__)
Kind = Literal["text", "draw"]
TYPICAL_S = 1.0  # of a request, as long as none has ended


@dataclass(eq=False)
class Job:
    """One reply or one drawing: what is to be done, and where its events go."""

    kind: Kind
    work: Any  # what its lane wants of it
    emit: Callable[[Any], None]  # from the scheduler's thread; an event, then None or an exception
    deadline: float = math.inf  # time.monotonic()
    queued_at: float = field(default_factory=time.monotonic)
    began_at: float | None = None
    cancelled: bool = False

    def stopped(self) -> bool:
        return self.cancelled or time.monotonic() >= self.deadline


class Lane(Protocol):
    """The running jobs of one kind."""

    @property
    def busy(self) -> bool: ...

    @property
    def free(self) -> bool:
        """Whether one more may begin, as far as another thread can see."""
        ...

    def takes(self, job: Job) -> bool:
        """Whether this one may begin now."""
        ...

    def add(self, job: Job) -> None: ...

    def turn(self) -> None:
        """One step of its jobs; those that have ended are told so and are gone."""
        ...

    def drop(self, stopped: Callable[[Job], bool]) -> list[Job]:
        """Forgets jobs that nobody waits for, and gives them back."""
        ...

    def clear(self) -> None:
        """Forgets everything, whatever state it is in."""
        ...


class Turns:
    """Jobs whose work is an iterator of events, in turns: the next event of one, then of the next."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: deque[tuple[Job, Iterator[Any]]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def free(self) -> bool:
        return len(self._running) < self._most

    def takes(self, job: Job) -> bool:
        return self.free

    def add(self, job: Job) -> None:
        self._running.append((job, job.work()))

    def turn(self) -> None:
        job, events = self._running.popleft()
        try:
            event = next(events)
        except StopIteration:
            job.emit(None)
        except Exception as error:
            job.emit(error)
        else:
            job.emit(event)
            self._running.append((job, events))

    def drop(self, stopped: Callable[[Job], bool]) -> list[Job]:
        gone = [(job, events) for job, events in self._running if stopped(job)]
        self._running = deque(pair for pair in self._running if pair not in gone)
        for _, events in gone:
            events.close()  # type: ignore[attr-defined]
        return [job for job, _ in gone]

    def clear(self) -> None:
        self._running.clear()


class Lanes:
    """Whose turn it is: the lane that has had the least of its share."""

    def __init__(self, lanes: dict[Kind, Lane], draw_share: float) -> None:
        self.of = lanes
        self._share: dict[Kind, float] = {"text": 1 - draw_share, "draw": draw_share}
        self._passed: dict[Kind, float] = dict.fromkeys(lanes, 0.0)  # seconds, over the share
        self._had_work: set[Kind] = set()

    def next(self) -> Kind | None:
        at_work: set[Kind] = {kind for kind, lane in self.of.items() if lane.busy}
        for kind in at_work - self._had_work:  # what a lane did not want it cannot ask for later
            others = [self._passed[other] for other in at_work & self._had_work]
            self._passed[kind] = max(self._passed[kind], *others) if others else self._passed[kind]
        self._had_work = at_work
        return min(at_work, key=lambda kind: self._passed[kind]) if at_work else None

    def spent(self, kind: Kind, seconds: float) -> None:
        self._passed[kind] += seconds / self._share[kind]


class Scheduler:
    """The queue and the thread of one device."""

    def __init__(self, lanes: Lanes, max_queue: int) -> None:
        self._lanes, self._max_queue = lanes, max_queue
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._typical_s = TYPICAL_S

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, jobs: list[Job]) -> None:
        """All of them, or a Problem: the queue is full, or the server is going."""
        with self._lock:
            self._check_room(len(jobs), free=self._lanes.of[jobs[0].kind].free)
            self._waiting.extend(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgemm-scheduler", daemon=True)
                self._thread.start()
            self._lock.notify()

    def check_room(self) -> None:
        """The Problem that submit would raise now."""
        with self._lock:
            self._check_room(1, free=True)

    def _check_room(self, count: int, free: bool) -> None:
        if self._closed:
            raise Problem(503, "shutting_down", "the server is shutting down; ask another", retry_after_s=1)
        waiting = len(self._waiting)
        if waiting + count > self._max_queue and not (free and not waiting):
            raise busy(waiting, self._retry_after_s())

    def wake(self) -> None:
        """Somebody cancelled."""
        with self._lock:
            self._lock.notify()

    def close(self, patience_s: float = 0.0) -> None:
        """Takes nothing more, and ends after what it has, or after so many seconds."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        thread = self._thread
        if thread is None:
            return
        thread.join(patience_s)
        with self._lock:
            for job in (*self._waiting, *self._running):
                job.cancelled = True
            self._lock.notify()
        thread.join()

    def _retry_after_s(self) -> int:
        return max(1, min(60, math.ceil(self._typical_s * (len(self._waiting) + 1) / max(1, len(self._running)))))

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    return
            except BaseException:  # a library's panic is no Exception, and without this thread nobody is answered
                LOG.exception("the scheduler failed")
                self._give_up()

    def _turn(self) -> bool:
        """The next turn; False once there is none any more."""
        with self._lock:
            self._drop_stopped()
            while not self._waiting and not self._running:
                if self._closed:
                    return False
                self._lock.wait()
                self._drop_stopped()
            self._admit()
        kind = self._lanes.next()
        if kind is None:
            return True
        start = time.perf_counter()
        try:
            self._lanes.of[kind].turn()
        except Exception:  # of the lane itself; its jobs' own errors it tells them
            LOG.exception("a turn of the %s lane failed", kind)
            self._drop(lambda job, kind=kind: job.kind == kind, RuntimeError("the scheduler failed"))
        self._lanes.spent(kind, time.perf_counter() - start)
        return True

    def _give_up(self) -> None:
        """Ends what is running; who waits is answered by what goes on."""
        with self._lock:
            for lane in self._lanes.of.values():
                lane.clear()
            for job in tuple(self._running):
                job.emit(RuntimeError("the scheduler failed"))

    def _admit(self) -> None:
        """Whoever fits begins, in the order of asking; one kind does not wait for the other."""
        full: set[str] = set()
        for job in tuple(self._waiting):
            lane = self._lanes.of[job.kind]
            if job.kind in full or not lane.takes(job):
                full.add(job.kind)
                continue
            self._waiting.remove(job)
            job.began_at = time.monotonic()
            job.emit = self._ending(job, job.emit)
            self._running.add(job)
            try:
                lane.add(job)
            except Exception as error:
                job.emit(error)

    def _ending(self, job: Job, emit: Callable[[Any], None]) -> Callable[[Any], None]:
        def told(event: Any) -> None:
            if event is None or isinstance(event, BaseException):
                self._running.discard(job)
                if event is None and job.began_at is not None:
                    self._typical_s += 0.1 * (time.monotonic() - job.began_at - self._typical_s)
            emit(event)

        return told

    def _drop_stopped(self) -> None:
        late = Problem(408, "deadline_exceeded", "the request took longer than its timeout_s")
        self._waiting, gone = _split(self._waiting, Job.stopped)
        for job in gone:
            job.emit(late)
        self._drop(Job.stopped, late)

    def _drop(self, which: Callable[[Job], bool], error: Exception) -> None:
        for lane in self._lanes.of.values():
            for job in lane.drop(which):
                job.emit(error)


def _split(jobs: deque[Job], out: Callable[[Job], bool]) -> tuple[deque[Job], list[Job]]:
    gone = [job for job in jobs if out(job)]
    return (deque(job for job in jobs if job not in gone), gone) if gone else (jobs, gone)


class Ticket:
    """The events of jobs as an asyncio task takes them; to close it ends the work.

    `submit` gives the jobs to the scheduler; each event comes with the number of its job.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self.jobs: list[Job] = []
        self._left = 0

    def submit(self, works: list[tuple[Kind, Any]], deadline: float) -> Ticket:
        self.jobs = [Job(kind, work, self._emitter(index), deadline) for index, (kind, work) in enumerate(works)]
        self._left = len(self.jobs)
        self._scheduler.submit(self.jobs)
        return self

    def _emitter(self, index: int) -> Callable[[Any], None]:
        def emit(event: Any) -> None:
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:  # the loop is closed: nobody listens
                self.jobs[index].cancelled = True

        return emit

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> tuple[int, Any]:
        while self._left:
            index, event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            if event is not None:
                return index, event
            self._left -= 1
        raise StopAsyncIteration

    @property
    def queued_s(self) -> float:
        """How long the first job waited before it began."""
        began = self.jobs[0].began_at
        return 0.0 if began is None else began - self.jobs[0].queued_at

    def close(self) -> None:
        """Ends what has not ended; returns at once, and the work ends before its next step."""
        if self._left:
            for job in self.jobs:
                job.cancelled = True
            self._scheduler.wake()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
