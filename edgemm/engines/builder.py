"""An engine for one component: from the cache when a whole one is there, else built, once, whoever else asks.

Before NVIDIA's parser sees a graph it has passed our own checks (bundle_engines.py).  What an engine depends on is in
engine_spec.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bundle.files import is_disk_full
from edgemm.bundle.forked import signal_name
from edgemm.bundle.onnx_file import external_locations
from edgemm.device.child import Watch, device_bytes, environment, python
from edgemm.device.gpu import gpu_uuid
from edgemm.engines.cache import EngineCache, Entry
from edgemm.engines.engine_spec import EngineSpec, Profile, merged, smaller
from edgemm.errors import BundleError, EdgemmError, ResourceError, UsageError
from edgemm.options import option, parse_bytes

__all__ = [
    "OPT_LEVEL",
    "TIMEOUT_S",
    "BuildOptions",
    "Built",
    "Limits",
    "Outcome",
    "Rung",
    "attempt",
    "build_engine",
    "climb",
]


OPT_LEVEL = 3  # TensorRT's own default
AS_ASKED = "as asked"  # what the first attempt is called
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class BuildOptions:
    """What `edgemm build` is asked for: names, defaults and meaning of every option, said once."""

    target: str | None = option(None, "rtx, jetson-orin-jp6, jetson-orin or jetson-thor (default: what fits here)")
    sm: str | None = option(None, "build for RTX devices that are not here: 75, 80, 86, 89, 120, 121", metavar="SM,...")
    device: str | None = option(None, "which of this machine's GPUs (default: cuda:0)", metavar="cuda:N")
    max_memory: str | None = option(
        None, "of the building process: 2GiB (default: 3/4 of what is free)", metavar="SIZE"
    )
    opt_level: int = option(OPT_LEVEL, "0 to 5: how long TensorRT looks for speed")
    timeout: float = option(TIMEOUT_S, "of one attempt", metavar="SECONDS")
    cache: Path | None = option(
        None, "where engines are kept (default: ~/.cache/edgemm/engines, where models look for them)", metavar="FOLDER"
    )
    cache_size: str = option("16GiB", "oldest unused go beyond it", metavar="SIZE")

    def __post_init__(self) -> None:
        if not 0 <= self.opt_level <= 5:
            raise UsageError(f"opt-level is {self.opt_level}, expected 0 to 5")
        if not self.timeout > 0:
            raise UsageError(f"timeout is {self.timeout:g}, expected more than 0 seconds")
        for size in filter(None, (self.max_memory, self.cache_size)):
            parse_bytes(size)

    @property
    def memory_bytes(self) -> int | None:
        return parse_bytes(self.max_memory) if self.max_memory else None


@dataclass(frozen=True)
class Limits:
    memory_bytes: int  # of the building process
    timeout_s: float  # of one attempt


@dataclass(frozen=True)
class Built:
    entry: Entry
    fresh: bool  # built by this call; False: it was in the cache


def build_engine(spec: EngineSpec, graph: Path, cache: EngineCache, limits: Limits, as_asked: bool = False) -> Built:
    """`as_asked`: one that was built with another effort is built again."""
    entry, problem = _find(spec, cache, as_asked)
    if entry:
        return Built(entry, fresh=False)
    with cache.lock(spec):
        entry, problem = _find(spec, cache, as_asked)  # somebody may have built it meanwhile
        if entry:
            return Built(entry, fresh=False)
        if problem:
            progress.line(f"{spec}: the engine in the cache is not used, because {problem}; it is built again")
        progress.status(f"{spec}: building, once for this device; minutes are usual")
        try:
            return Built(_build(spec, graph, cache, limits), fresh=True)
        finally:
            progress.status("")


def _find(spec: EngineSpec, cache: EngineCache, as_asked: bool) -> tuple[Entry | None, str]:
    entry, problem = cache.find(spec)
    if entry is None or not as_asked:
        return entry, problem
    effort = entry.record.get("effort", {})
    if effort.get("opt_level") != spec.opt_level:
        return None, f"it was built at optimization level {effort.get('opt_level')}"
    if effort.get("workspace_bytes", 0) < spec.workspace_bytes and entry.record["rung"] != AS_ASKED:
        return None, f"less memory left it {entry.record['rung']}"
    return entry, ""


def _build(spec: EngineSpec, graph: Path, cache: EngineCache, limits: Limits) -> Entry:
    workshop: Path | None = None

    def run(rung: Rung) -> Outcome:
        assert workshop
        wish = {
            "tensorrt": spec.tensorrt,
            "graph": str(graph),
            "files": {str(path): digest for path, digest in _files(spec, graph).items()},
            "engine": str(workshop / "engine"),
            "sm": "" if spec.place.here else spec.place.compute_capability.replace(".", ""),
            "profiles": [profile.shapes for profile in rung.profiles],
            "workspace_bytes": rung.workspace_bytes,
            "opt_level": rung.opt_level,
            "decomposable": rung.decomposable,
            "tf32": spec.tf32,
        }
        number = spec.place.number if spec.place.here else 0
        # a driver that is too old for names gets the number, and no empty list, which hides every GPU
        gpu = {"CUDA_VISIBLE_DEVICES": gpu_uuid(number) or str(number)} if number else {}
        return attempt(str(spec), wish, limits.memory_bytes, limits.timeout_s, gpu)

    try:
        workshop = cache.workshop(spec)
        first = Rung(spec.workspace_bytes, spec.opt_level, spec.profiles)
        rung, result, peak = climb(first, run, str(spec))
        largest = {profile.phase: {n: s[2] for n, s in profile.shapes.items()} for profile in rung.profiles}
        record = {**result, "rung": rung.what, "peak_bytes": peak, "largest": largest, "effort": spec.effort}
        return cache.store(spec, workshop, record)
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(f"{spec}: the disk is full: {cache.folder}; what stood there is untouched") from error
        raise
    finally:
        if workshop:
            shutil.rmtree(workshop, ignore_errors=True)


def _files(spec: EngineSpec, graph: Path) -> dict[Path, str]:
    """What the parser reads, and the hashes that the key holds."""
    several = dict(each.split("=") for each in spec.data_sha256.split() if "=" in each)
    data = {graph.parent / name: several.get(name, spec.data_sha256) for name in external_locations(graph)}
    return {graph: spec.graph_sha256, **data}


# When a build fails: what to try next, and how the story is told.
#
# Less scratch memory, then one profile for all phases, a lower optimization level, smaller shapes; attention without a
# kernel of its own is taken apart.  What a graph is refused for, and a full disk, no rung cures.

LEAST_WORKSPACE_BYTES = 16 << 20
LOW_LEVEL = 1


@dataclass(frozen=True)
class Rung:
    """How one attempt is made."""

    workspace_bytes: int
    opt_level: int
    profiles: tuple[Profile, ...]
    decomposable: bool = False
    what: str = AS_ASKED


def climb(first: Rung, attempt: Callable[[Rung], Outcome], what: str) -> tuple[Rung, dict[str, Any], int]:
    """The rung that held, its result, and the peak of memory; raises with the whole story when none does."""
    rung, story = first, []
    while True:
        outcome = attempt(rung)
        if outcome.result is not None:
            return rung, outcome.result, outcome.peak_bytes
        story.append(f"{rung.what}: {outcome.text}")
        if outcome.kind == "refused":
            raise BundleError(f"{what}: TensorRT's parser refuses it: {outcome.text}")
        if outcome.kind == "altered":
            raise BundleError(f"{what}: {outcome.text}")
        if outcome.kind == "disk":
            raise ResourceError(f"{what}: the disk is full: {outcome.text}; what stood in the cache is untouched")
        following = _next(rung, outcome.kind)
        if following is None:
            if outcome.kind == "compiler":  # it failed within itself: another graph may build
                kind: type[EdgemmError] = BundleError
            else:
                kind = ResourceError if outcome.kind in ("memory", "time", "crash") else EdgemmError
            raise kind(f"{what}: no engine after {len(story)} attempts: {'; '.join(story)}")
        progress.line(f"{what}: {rung.what}: {outcome.text}; next: {following.what}")
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


# One attempt at one engine: a child process, watched: its news told, its memory held under a cap, its time too.
#
# The child is child.py.  What to do after a failed attempt is for builder.py.


@dataclass(frozen=True)
class Outcome:
    """A result, or the kind of the failure and what was said."""

    result: dict[str, Any] | None
    kind: str = ""  # "memory", "time", "disk", "refused", "attention", "compiler", "crash", "other"
    text: str = ""
    peak_bytes: int = 0


def attempt(
    what: str, wish: dict[str, Any], memory_bytes: int, timeout_s: float, variables: dict[str, str] | None = None
) -> Outcome:
    """`what` is how the engine is called to whoever waits; `variables` are added to its environment."""
    began_s = time.monotonic()
    child = subprocess.Popen(
        python("edgemm.engines.child"),
        env={**environment(), **(variables or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    watch = Watch(child, memory_bytes, time.monotonic() + timeout_s, device_bytes)
    try:
        assert child.stdin and child.stdout
        _send(child, wish)
        said = _Drain(child)
        watch.start()
        last: dict[str, Any] = {}
        for line in child.stdout:
            last = _read(line) or last
            if "phase" in last:
                steps = f" {last['done']}/{last['of']}" if last["of"] > 1 else ""
                so_far = f"{time.monotonic() - began_s:.0f} s so far, at most {timeout_s:.0f} s an attempt"
                progress.status(f"{what}: {last['phase']}{steps}, {so_far}")
        child.wait()
    finally:
        child.kill()
        child.wait()
    return _outcome(last, watch, child.returncode, said.tail(), memory_bytes, timeout_s)


def _send(child: subprocess.Popen[str], wish: dict[str, Any]) -> None:
    assert child.stdin
    try:
        child.stdin.write(json.dumps(wish))
        child.stdin.close()
    except BrokenPipeError:
        pass  # it is gone already, and its exit says why


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _outcome(last: dict[str, Any], watch: Watch, code: int, said: str, memory_bytes: int, timeout_s: float) -> Outcome:
    peak = watch.peak_bytes
    if watch.reason == "memory":
        return Outcome(None, "memory", f"it grew past {_size(memory_bytes)}", peak)
    if watch.reason == "time":
        return Outcome(None, "time", f"it was not done after {timeout_s:.0f} s", peak)
    if "result" in last:
        return Outcome(last["result"], peak_bytes=peak)
    if "failure" in last:
        return Outcome(None, last["failure"]["kind"], last["failure"]["text"], peak)
    if code < 0:
        return Outcome(None, "crash", f"the builder crashed with {signal_name(-code)}", peak)
    return Outcome(None, "other", said or f"the builder ended with code {code}", peak)


class _Drain(threading.Thread):
    """Reads stderr to its end, so that a talkative library never blocks; keeps the last line."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.stream, self.last = child.stderr, ""
        self.start()

    def run(self) -> None:
        for line in self.stream or ():
            self.last = line.strip() or self.last

    def tail(self) -> str:
        self.join(timeout=5)
        return self.last


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
