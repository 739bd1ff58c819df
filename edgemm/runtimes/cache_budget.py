"""How much memory the K/V caches of one model may take together, and what a bundle needs before anything is loaded.

Computed from the manifest alone, so that a limit is honoured before the first byte is allocated.  It counts weights
and caches, which grow with a model and its conversations; WORK_BYTES stands for the rest.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant
from edgemm.bundle.manifest import Manifest
from edgemm.errors import ResourceError, UsageError

__all__ = ["UNLIMITED", "CacheBudget", "MemoryPlan", "plan_memory"]

MB = 1_000_000
WORK_BYTES = 96 * MB  # Python, the backend's code, and what a step computes with
COPIES = 4  # times its files that a bundle may take: kernels lay weights out anew (3.34 times was the most seen)


@dataclass(frozen=True)
class MemoryPlan:
    """What a bundle takes on a target, and what a limit leaves for conversations."""

    limit_bytes: int | None
    weights_bytes: int  # every component of the target
    slot_bytes: int  # K/V of one token
    max_context: int  # of the bundle
    largest_bytes: int = 0  # of one component's weights
    in_turns: bool = False  # whether the limit might not hold all components once they have run (turns.py)

    @property
    def kept_bytes(self) -> int:
        """Weights that stay beside the caches: those of every component, where the limit holds their files."""
        short = self.in_turns and (self.limit_bytes or 0) < self.weights_bytes + self.least_bytes
        return self.largest_bytes if short else self.weights_bytes

    @property
    def least_bytes(self) -> int:
        """To work, and a short conversation."""
        return WORK_BYTES + self.slot_bytes * min(256, self.max_context)

    @property
    def cache_bytes(self) -> int | None:
        """For all caches together; None without a limit."""
        if self.limit_bytes is None:
            return None
        return self.limit_bytes - self.kept_bytes - WORK_BYTES

    @property
    def cache_slots(self) -> int | None:
        """Tokens that all conversations may hold together; None without a limit."""
        return None if self.cache_bytes is None or not self.slot_bytes else self.cache_bytes // self.slot_bytes

    def __str__(self) -> str:
        weights = f"weights {self.weights_bytes / MB:.0f} MB, {self.slot_bytes / 1e3:.1f} kB a token of conversation"
        if self.limit_bytes is None:
            return f"{weights}, {self.slot_bytes * self.max_context / MB:.0f} MB at its longest; no limit"
        short = self.kept_bytes < self.weights_bytes
        turns = f", in turns ({self.largest_bytes / MB:.0f} MB at once)" if short else ""
        return f"{weights}; a limit of {self.limit_bytes / MB:.0f} MB{turns} leaves room for {self.cache_slots} tokens"


def plan_memory(
    manifest: Manifest, target: str, limit_mb: float | None = None, may_take_turns: bool = False
) -> MemoryPlan:
    """Raises ResourceError when the limit does not even hold one short conversation and the weights, or those of the
    largest component where components may take turns."""
    if limit_mb is not None and not 0 < limit_mb < math.inf:
        raise UsageError(f"memory_limit_mb is {limit_mb}, expected above 0 and finite")
    sizes = [0]
    for component in manifest.targets[target]:
        variant = manifest.variant(component, target)
        named = (manifest.files.get(name) for name in (variant.graph, variant.data) if name)
        sizes.append(sum(record.size_bytes for record in named if record))  # none while a bundle is being written
    has_cache = "transformer" in manifest.targets[target]
    slot = cache_bytes_a_slot(manifest.variant("transformer", target)) if has_cache else 0
    limit = None if limit_mb is None else int(limit_mb * MB)
    most = manifest.limits.max_context
    in_turns = may_take_turns and limit is not None and limit < COPIES * sum(sizes) + WORK_BYTES
    plan = MemoryPlan(limit, sum(sizes), slot, most, max(sizes), in_turns)
    weights, more = max(sizes) if may_take_turns else sum(sizes), plan.least_bytes
    if limit is not None and limit < weights + more:
        what = "the largest component's weights" if may_take_turns else "weights"
        raise ResourceError(
            f"memory_limit_mb is {limit_mb:g}, this bundle needs at least {-(-(weights + more) // MB)}: "
            f"{weights / MB:.0f} MB of {what}, {WORK_BYTES / MB:.0f} to work, and a conversation of {min(256, most)} "
            "tokens; export it smaller (--precision int4) or allow more"
        )
    return plan


class CacheBudget:
    """Bytes that caches share; each holds a lease, which ends with the cache."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes = most_bytes
        self.taken_bytes = 0
        self._lock = threading.RLock()  # the collector may end a lease while one grows

    def lease(self, holder: object) -> Lease:
        lease = Lease(self)
        weakref.finalize(holder, lease.end).atexit = False
        return lease


class Lease:
    """What one cache has of the budget."""

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def can_grow(self, size_bytes: int) -> bool:
        most = self._budget.most_bytes
        return most is None or self._budget.taken_bytes - self._bytes + size_bytes <= most

    def grow(self, size_bytes: int) -> None:
        """To so many bytes in all; ResourceError when that is more than there is."""
        budget = self._budget
        with budget._lock:
            if not self.can_grow(size_bytes):
                left = (budget.most_bytes or 0) - budget.taken_bytes + self._bytes
                raise ResourceError(
                    f"a conversation of this length takes {size_bytes / MB:.1f} MB, the memory limit leaves "
                    f"{left / MB:.1f}; close other sessions, shorten it, or allow more"
                )
            budget.taken_bytes += size_bytes - self._bytes
            self._bytes = size_bytes

    def end(self) -> None:
        with self._budget._lock:
            self._budget.taken_bytes -= self._bytes
            self._bytes = 0


UNLIMITED = CacheBudget()


def cache_bytes_a_slot(transformer: Variant) -> int:
    """What every layer keeps of one token."""
    return row_bytes(spec for spec in transformer.inputs if spec.name.startswith("past_"))


def row_bytes(specs: Iterable[TensorSpec]) -> int:
    """Of one slot in tensors (b, heads, slots, width)."""
    return sum(spec.fixed(1, "heads") * spec.fixed(3, "head width") * np.dtype(spec.dtype).itemsize for spec in specs)
