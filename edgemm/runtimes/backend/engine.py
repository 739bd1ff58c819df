"""What the loops ask of a backend: named inputs and outputs, bound once to arrays, run many times.

A binding writes its outputs into the caller's arrays, so the same array may be an input and an output (the K/V cache),
and one engine's output may be another's input (the prefix) without a copy.  Loops use an Engine; a backend derives its
own from LoadedEngine, which checks what is bound, and runs it through a LockedBinding where arrays are tied by address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemm.bundle.components import TensorSpec, pattern
from edgemm.bundle.manifest import Variant
from edgemm.device.threads import ThreadPlan
from edgemm.errors import BundleError, EdgemmError, ResourceError

__all__ = [
    "Arrays",
    "Backend",
    "Binding",
    "Engine",
    "GraphFiles",
    "LoadedEngine",
    "LockedBinding",
    "allocator",
    "check_arrays",
    "check_finite",
    "check_names",
    "explained",
    "first_line",
]

Arrays = Mapping[str, np.ndarray]
SPARED = ("block_key.*", "block_value.*")  # outputs that may be left unbound: only a picture's reading wants them


@dataclass(frozen=True)
class GraphFiles:
    """A component on disk, and what the manifest says of it."""

    component: str
    graph: Path
    data: Path | None  # its weights; None where they are in the graph
    variant: Variant


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
    """A module, or an object in one (choice.py).  One that knows better than its list of providers whether a target
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
    """Arrays that were tied by address, kept alive here; a run takes the model's lock and is one call of the library.

    `call` may take arguments, which `run` hands on.
    """

    def __init__(self, engine: LoadedEngine, arrays: Sequence[Arrays], call: Callable[..., Any]) -> None:
        self._engine, self._lock, self._call = engine, engine.lock, call
        self._kept_alive = [array for side in arrays for array in side.values()]

    def run(self, *arguments: Any) -> None:
        try:
            with self._lock:
                self._call(*arguments)
        except Exception as error:  # libraries' errors share no base but Exception
            engine = self._engine
            what = f"{engine.component}: {engine.title} failed"
            raise explained(error, what, EdgemmError, engine.reason(error)) from error


OUT_OF_MEMORY = ("bad_alloc", "out of memory", "failed to allocate memory")


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def explained(error: Exception, what: str, kind: type[EdgemmError], reason: str) -> EdgemmError:
    """A library's error as one of ours."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
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
        raise EdgemmError(f"{component}: tensors {wrong} are missing or left over")
    for name, spec in specs.items():
        array = arrays[name]
        if array.dtype != np.dtype(spec.dtype) or not array.flags.c_contiguous or array.ndim != len(spec.shape):
            raise EdgemmError(f"{component}: {name} is {array.dtype} {array.shape}, expected {spec.dtype} {spec.shape}")
        for entry, size in zip(spec.shape, array.shape):
            wanted = axes.setdefault(entry, size) if isinstance(entry, str) else entry
            if size != wanted:
                raise EdgemmError(
                    f"{component}: {name} has shape {array.shape}, expected {spec.shape}: {size} != {wanted}"
                )


def check_finite(array: np.ndarray, stage: str) -> None:
    """Raises when numbers went wrong, and says where."""
    if not np.isfinite(array).all():
        raise EdgemmError(
            f"{stage}: NaN or infinity; the bundle's precision does not hold here, or its weights are damaged"
        )
