"""What the loops ask of a backend: named inputs and outputs, bound once to arrays, run many times.

A binding writes its outputs into the caller's arrays, so the same array may be an input and an output (the K/V cache),
and one engine's output may be another's input (the prefix) without a copy.  Loops use an Engine; a backend derives its
own from LoadedEngine, which checks what is bound, and runs it through a LockedBinding where arrays are tied by address.
How many threads a backend gets, and whether they may spin, is planned here, too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant, pattern
from edgemm.bundle.held_file import HeldFile
from edgemm.device.machine import core_quota
from edgemm.errors import BundleError, EdgemmError, ResourceError, UsageError, ran_out_of_memory

__all__ = [
    "Arrays",
    "Backend",
    "Binding",
    "Engine",
    "GraphFiles",
    "LoadedEngine",
    "LockedBinding",
    "NotFiniteError",
    "ThreadPlan",
    "allocator",
    "check_arrays",
    "check_finite",
    "check_names",
    "explained",
    "first_line",
    "plan_threads",
]

Arrays = Mapping[str, np.ndarray]
SPARED = ("block_key.*", "block_value.*")  # outputs that may be left unbound: only a picture's reading wants them


@dataclass(frozen=True)
class ThreadPlan:
    """What a CPU gives an engine."""

    count: int
    spinning: bool
    why: str


@dataclass(frozen=True)
class GraphFiles:
    """A component on disk, and what the manifest says of it."""

    component: str
    graph: Path
    data: Path | None  # its weights; None where they are in the graph
    variant: Variant
    verified: tuple[HeldFile, HeldFile | None] | None = None  # both, opened when they were; None: no matter which
    checked: bool = False  # whether it is known what the graph would have a library read
    shared: tuple[HeldFile, ...] = ()  # of other graphs' weights, in the order of variant.shares

    def opened(self) -> tuple[HeldFile, HeldFile | None]:
        """Graph and weights as they were verified, else as they are now."""
        return self.verified or (HeldFile(self.graph), HeldFile(self.data) if self.data else None)

    def weights(self, data: HeldFile | None) -> dict[str, HeldFile]:
        """Every file of weights, by the name that the graph has for it."""
        own = {} if data is None else {data.path.name: data}
        return own | dict(zip(self.variant.shared_locations, self.shared, strict=True))


class Binding(Protocol):
    """Arrays tied to an engine's inputs and outputs."""

    def run(self) -> None:
        """Reads the input arrays as they are now and fills the output arrays."""
        ...


class Engine(Protocol):
    """A component loaded by a backend on this device."""

    component: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def bind(self, inputs: Arrays, outputs: Arrays) -> Binding:
        """All inputs and outputs, but those of SPARED, have to be given, contiguous and as large as their specs say."""
        ...


class Backend(Protocol):
    """A module, or an object in one (engines.py).  One that knows better than its list of providers whether a target
    runs here has `problem(target)` too."""

    def version(self) -> str: ...

    def providers(self) -> tuple[str, ...]:
        """What it could use; whether it does is known once an engine is open."""
        ...

    def open_engine(self, files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock) -> Engine:
        """Loads one component; `lock` is shared by the engines of a model, so that runs take turns."""
        ...


class LoadedEngine:
    """What the engines of every backend have."""

    title = ""  # of the library, in messages

    def __init__(self, component: str, variant: Variant, lock: threading.Lock) -> None:
        self.component, self.lock = component, lock
        self.inputs = {spec.name: spec for spec in variant.inputs}
        self.outputs = {spec.name: spec for spec in variant.outputs}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Binding:
        """Arrays are checked before anybody takes their addresses: an axis has one size on both sides."""
        axes: dict[str, int] = {}
        check_arrays(self.component, self.inputs, inputs, axes)
        asked = {name: spec for name, spec in self.outputs.items() if name in outputs or pattern(name) not in SPARED}
        check_arrays(self.component, asked, outputs, axes)
        return self.tie(inputs, outputs)

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        """The binding of arrays that were checked."""
        raise NotImplementedError

    def reason(self, error: Exception) -> str:
        """What the library says of an error, in one line."""
        return first_line(error)


class LockedBinding:
    """Arrays that were tied by address, kept alive here; a run holds the model's lock and is one call."""

    def __init__(self, engine: LoadedEngine, arrays: Sequence[Arrays], call: Callable[[], Any]) -> None:
        self._engine, self._lock, self._call = engine, engine.lock, call
        self._kept_alive = [array for side in arrays for array in side.values()]

    def run(self) -> None:
        try:
            with self._lock:
                self._call()
        except Exception as error:  # libraries' errors share no base but Exception
            engine = self._engine
            what = f"{engine.component}: {engine.title} failed"
            raise explained(error, what, BundleError, engine.reason(error)) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def explained(error: Exception, what: str, kind: type[EdgemmError], reason: str) -> EdgemmError:
    """A library's error as one of ours."""
    if ran_out_of_memory(error):
        return ResourceError(f"{what}: out of memory: {reason}")
    return kind(f"{what}: {reason}")


def check_names(graph: Path, side: str, specs: Sequence[TensorSpec], found: Sequence[Collection[str]]) -> None:
    """The manifest and the graph have to name the same tensors; `found` has the names of each of the graph's."""
    names = {name for aliases in found for name in aliases}
    missing = [spec.name for spec in specs if spec.name not in names]
    if missing or len(found) != len(specs):
        known = {spec.name for spec in specs}
        left = [min(aliases, default="") for aliases in found if not known & set(aliases)]
        raise BundleError(
            f"{graph}: {side}s {', '.join(sorted([*missing, *left]))} are not both in the graph and in the manifest"
        )


def allocator(engine: Engine) -> Callable[[tuple[int, ...], Any], np.ndarray]:
    """What makes zeroed arrays that the engine needs not copy at every run: its own way, or numpy's.

    For what is large and bound again and again: caches, the prefix.  numpy may read and write them between runs.
    """
    return getattr(engine, "zeros", np.zeros)


def check_arrays(component: str, specs: Mapping[str, TensorSpec], arrays: Arrays, axes: dict[str, int]) -> None:
    """Raises when an array is missing, left over or unfit; `axes` collects the size of each named axis."""
    if specs.keys() != arrays.keys():
        wrong = sorted(specs.keys() ^ arrays.keys())
        raise BundleError(f"{component}: tensors {wrong} are missing or left over")
    for name, spec in specs.items():
        array = arrays[name]
        if array.dtype != np.dtype(spec.dtype) or not array.flags.c_contiguous or array.ndim != len(spec.shape):
            raise BundleError(f"{component}: {name} is {array.dtype} {array.shape}, expected {spec.dtype} {spec.shape}")
        for entry, size in zip(spec.shape, array.shape):
            wanted = axes.setdefault(entry, size) if isinstance(entry, str) else entry
            if size != wanted:
                raise BundleError(
                    f"{component}: {name} has shape {array.shape}, expected {spec.shape}: {size} != {wanted}"
                )


class NotFiniteError(BundleError):
    """Numbers went wrong; a comparison that meets it has failed (verify/loops.py)."""


def check_finite(array: np.ndarray, stage: str) -> None:
    """NotFiniteError when numbers went wrong, and where."""
    if not np.isfinite(array).all():
        raise NotFiniteError(
            f"{stage}: NaN or infinity; the bundle's precision does not hold here, or its weights are damaged"
        )


# A spinning thread answers faster and burns a core.  With other work on the same cores that turned 7 ms a token into
# 28, so it is allowed only where this process has the machine to itself.  The load average tells of the last minute, so
# work that has just ended is no reason: others have to be running now as well.

BUSY = 0.3  # load average, a core, above which somebody else is at work
LOOKS, PAUSE_S = 4, 0.002  # at what runs now; work that goes on is there each time


def plan_threads(threads: int | None = None, root: Path = Path("/")) -> ThreadPlan:
    """`threads` as asked, or one a core that this process may use."""
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = core_quota(root)
    usable = max(1, min(allowed, int(quota) if quota is not None else allowed))
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads}, expected 1 to 1024")
    count = threads or usable
    reasons = []
    if count > usable:
        reasons.append(f"{count} threads share {usable} cores")
    if allowed < cores or (quota is not None and quota < cores):
        reasons.append(f"this process may use {usable} of {cores} cores")
    busy = _load_average() / cores
    if busy > BUSY and _others_now(root) > BUSY * cores:
        reasons.append(f"the cores are {busy:.0%} busy already")
    return ThreadPlan(count, not reasons, "; ".join(reasons) or "no other work in sight")


def _others_now(root: Path) -> float:
    """Tasks besides this one that run at this moment; infinitely many where nobody can tell."""
    fewest = float("inf")
    for look in range(LOOKS):
        try:
            running = (root / "proc/loadavg").read_text().split()[3].partition("/")[0]
            fewest = min(fewest, int(running) - 1)
        except (OSError, IndexError, ValueError):
            break
        if fewest <= 0:
            break
        if look + 1 < LOOKS:
            time.sleep(PAUSE_S)
    return fewest


def _load_average() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0
