"""The replies that a device writes side by side: one batch for each model and adapter, which take turns.

Graphs bind one adapter for all rows (runtimes/adapters.py), so replies with different adapters cannot share a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgemm.errors import EdgemmError
from edgemm.runtimes.text_batch import TextBatch, Writing
from edgemm.serve.registry import Named
from edgemm.serve.scheduler import Job

__all__ = ["TextLane", "TextWork"]

Key = tuple[int, "str | None"]  # a model, and the adapter


@dataclass(frozen=True)
class TextWork:
    """A reply that was prepared."""

    named: Named
    writing: Writing

    @property
    def key(self) -> Key:
        return id(self.named.model), self.named.adapter


class TextLane:
    """At most so many replies at once, of all models together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._batches: dict[Key, TextBatch] = {}
        self._jobs: dict[Writing, Job] = {}
        self._order: deque[Key] = deque()  # whose turn is next

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    @property
    def free(self) -> bool:
        return len(self._jobs) < self._most

    def takes(self, job: Job) -> bool:
        batch = self._batches.get(job.work.key)
        return self.free and (batch is None or (not batch.full and batch.fits(job.work.writing)))

    def add(self, job: Job) -> None:
        work: TextWork = job.work
        if work.key not in self._batches:
            work.named.model.set_adapter(work.named.adapter)
            self._batches[work.key] = work.named.model.text_batch(self._most)
            self._order.append(work.key)
        self._jobs[work.writing] = job
        self._batches[work.key].add(work.writing)

    def turn(self) -> None:
        """A piece of a prompt, or a token of each reply, in the next batch that has any."""
        while not len(self._batches[self._order[0]]):
            self._order.rotate(-1)
        key = self._order[0]
        self._order.rotate(-1)
        named = next(job.work.named for job in self._jobs.values() if job.work.key == key)
        named.model.set_adapter(named.adapter)
        for writing, said in self._batches[key].turn():
            job = self._jobs[writing]
            over = isinstance(said, EdgemmError) or said.finished
            if over:
                del self._jobs[writing]
            job.emit(said)
            if over and not isinstance(said, EdgemmError):
                job.emit(None)

    def clear(self) -> None:
        self._batches.clear()
        self._jobs.clear()
        self._order.clear()

    def drop(self, stopped: Callable[[Job], bool]) -> list[Job]:
        gone = [job for job in self._jobs.values() if stopped(job)]
        for job in gone:
            del self._jobs[job.work.writing]
            self._batches[job.work.key].drop(job.work.writing)
        return gone
