"""When a build fails: what to try next, and how the story is told.

Less scratch memory, then one profile for all phases, a lower optimization level, smaller shapes; attention without a
kernel of its own is taken apart.  What a graph is refused for, and a full disk, no rung cures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgemm.build.attempt import Outcome
from edgemm.build.profiles import Profile, merged, smaller
from edgemm.errors import BundleError, EdgemmError, ResourceError

__all__ = ["Rung", "climb"]

LEAST_WORKSPACE_BYTES = 16 << 20
LOW_LEVEL = 1


@dataclass(frozen=True)
class Rung:
    """How one attempt is made."""

    workspace_bytes: int
    opt_level: int
    profiles: tuple[Profile, ...]
    decomposable: bool = False
    what: str = "as asked"


def climb(
    first: Rung, attempt: Callable[[Rung], Outcome], say: Callable[[str], None], what: str
) -> tuple[Rung, dict[str, Any], int]:
    """The rung that held, its result, and the peak of memory; raises with the whole story when none does."""
    rung, story = first, []
    while True:
        outcome = attempt(rung)
        if outcome.result is not None:
            return rung, outcome.result, outcome.peak_bytes
        story.append(f"{rung.what}: {outcome.text}")
        if outcome.kind == "refused":
            raise BundleError(f"{what}: TensorRT's parser refuses it: {outcome.text}")
        if outcome.kind == "disk":
            raise ResourceError(f"{what}: the disk is full: {outcome.text}; what stood in the cache is untouched")
        following = _next(rung, outcome.kind)
        if following is None:
            kind = ResourceError if outcome.kind in ("memory", "time", "crash") else EdgemmError
            raise kind(f"{what}: no engine after {len(story)} attempts: {'; '.join(story)}")
        say(f"{what}: {rung.what}: {outcome.text}; next: {following.what}")
        rung = following


def _next(rung: Rung, kind: str) -> Rung | None:
    if kind == "attention":
        return None if rung.decomposable else replace(rung, decomposable=True, what="attention taken apart")
    if rung.workspace_bytes > LEAST_WORKSPACE_BYTES and kind != "time":
        less = max(LEAST_WORKSPACE_BYTES, rung.workspace_bytes // 8)
        return replace(rung, workspace_bytes=less, what=f"a workspace of {less >> 20} MiB")
    if len(rung.profiles) > 1 and kind != "time":
        return replace(rung, profiles=merged(rung.profiles), what="one profile for all phases")
    if rung.opt_level > LOW_LEVEL:
        return replace(rung, opt_level=LOW_LEVEL, what=f"optimization level {LOW_LEVEL}")
    shrunk = tuple(map(smaller, rung.profiles))
    if shrunk != rung.profiles and rung.what != "smaller shapes":
        return replace(rung, profiles=shrunk, what="smaller shapes")
    return None
