"""What the loops ask of a backend: named inputs and outputs, bound once to arrays, run many times.

A binding writes its outputs into the caller's arrays, so the same array may be an input and an output (the K/V cache),
and one engine's output may be another's input (the prefix) without a copy.  Backends implement Engine; loops use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from edgemm.bundle.components import TensorSpec, pattern
from edgemm.errors import EdgemmError

__all__ = ["Arrays", "Binding", "Engine", "allocator", "check_arrays", "check_binding", "check_finite"]

Arrays = Mapping[str, np.ndarray]
SPARED = ("block_key.*", "block_value.*")  # outputs that may be left unbound: only a picture's reading wants them


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


def allocator(engine: Engine) -> Callable[[tuple[int, ...], Any], np.ndarray]:
    """What makes zeroed arrays that the engine needs not copy at every run: its own way, or numpy's.

    For what is large and bound again and again: caches, the prefix.  numpy may read and write them between runs.
    """
    return getattr(engine, "zeros", np.zeros)


def check_binding(engine: Engine, inputs: Arrays, outputs: Arrays) -> None:
    """What every backend asks of arrays before it takes their addresses: an axis has one size on both sides."""
    axes: dict[str, int] = {}
    check_arrays(engine.component, engine.inputs, inputs, axes)
    asked = {name: spec for name, spec in engine.outputs.items() if name in outputs or pattern(name) not in SPARED}
    check_arrays(engine.component, asked, outputs, axes)


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
