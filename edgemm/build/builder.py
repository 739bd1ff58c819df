"""An engine for one component: from the cache when a whole one is there, else built, once, whoever else asks.

Before NVIDIA's parser sees a graph it has passed our own checks (graph_gate.py).  Attempts, and what follows a failed
one, are in attempt.py and ladder.py; what an engine depends on is in engine_spec.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemm.build.attempt import Outcome, attempt
from edgemm.build.engine_cache import EngineCache, Entry
from edgemm.build.engine_spec import EngineSpec
from edgemm.build.ladder import Rung, climb
from edgemm.errors import ResourceError
from edgemm.whole_folder import is_disk_full

__all__ = ["Built", "Limits", "build_engine"]


@dataclass(frozen=True)
class Limits:
    memory_bytes: int  # of the building process
    timeout_s: float  # of one attempt


@dataclass(frozen=True)
class Built:
    entry: Entry
    fresh: bool  # built by this call; False: it was in the cache


def build_engine(
    spec: EngineSpec,
    graph: Path,
    cache: EngineCache,
    limits: Limits,
    say: Callable[[str], None] = lambda line: None,
    status: Callable[[str], None] = lambda text: None,
) -> Built:
    """`say` gets lines worth keeping, `status` what is being done right now."""
    entry, problem = cache.find(spec)
    if entry:
        return Built(entry, fresh=False)
    wait = lambda seconds: status(f"{spec}: another process builds it, waiting for {seconds:.0f} s")  # noqa: E731
    with cache.lock(spec, wait):
        entry, problem = cache.find(spec)  # somebody may have built it meanwhile
        if entry:
            return Built(entry, fresh=False)
        if problem:
            say(f"{spec}: the engine in the cache is not used, because {problem}; it is built again")
        status(f"{spec}: building, once for this device; minutes are usual")
        return Built(_build(spec, graph, cache, limits, say, status), fresh=True)


def _build(
    spec: EngineSpec,
    graph: Path,
    cache: EngineCache,
    limits: Limits,
    say: Callable[[str], None],
    status: Callable[[str], None],
) -> Entry:
    began = time.monotonic()
    workshop: Path | None = None

    def news(phase: str, done: int, of: int) -> None:
        steps = f" {done}/{of}" if of > 1 else ""
        so_far = f"{time.monotonic() - began:.0f} s so far, at most {limits.timeout_s:.0f} s an attempt"
        status(f"{spec}: {phase}{steps}, {so_far}")

    def run(rung: Rung) -> Outcome:
        assert workshop
        wish = {
            "tensorrt": spec.tensorrt,
            "graph": str(graph),
            "engine": str(workshop / "engine"),
            "sm": "" if spec.place.here else spec.place.compute_capability.replace(".", ""),
            "profiles": [profile.shapes for profile in rung.profiles],
            "workspace_bytes": rung.workspace_bytes,
            "opt_level": rung.opt_level,
            "decomposable": rung.decomposable,
        }
        return attempt(wish, limits.memory_bytes, limits.timeout_s, news)

    try:
        workshop = cache.workshop(spec)
        first = Rung(spec.workspace_bytes, spec.opt_level, spec.profiles)
        rung, result, peak = climb(first, run, say, str(spec))
        largest = {profile.phase: {n: s[2] for n, s in profile.shapes.items()} for profile in rung.profiles}
        record = {**result, "rung": rung.what, "peak_bytes": peak, "largest": largest}
        return cache.store(spec, workshop, record)
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(f"{spec}: the disk is full: {cache.folder}; what stood there is untouched") from error
        raise
    finally:
        if workshop:
            shutil.rmtree(workshop, ignore_errors=True)
