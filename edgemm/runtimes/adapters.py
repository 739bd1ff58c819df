"""Adapters that change what a model says and draws without touching its weights: PEFT's files, bound as graph inputs.

    adapters/NAME/transformer/   adapter_config.json, adapter_model.safetensors
    adapters/NAME/denoiser/      the same; either may be absent

A bundle has the inputs when it was exported with --adapters; where its weights were smoothed before they were rounded,
factors are scaled to fit when they are read (export/adapter_points.py).  Switching binds other arrays and costs no
copy.  A call, and a session, keeps the adapter that it began with.
Axes: i in, o out, r rank.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgemm.bundle.adapter_config import FILES, AdapterConfig
from edgemm.bundle.bundle import read_tensors
from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec, check_strength
from edgemm.bundle.files import reading
from edgemm.errors import InputError, UsageError
from edgemm.runtimes.backend.engine import Arrays, Binding, Engine, allocator

__all__ = ["AdaptedEngine", "Adapter", "Adapters", "zero_factors"]

RANK_AXIS = {"a": 1, "b": 0}
LARGEST_RANK = 4096  # every module of a part gets factors of its largest rank
NO_SCALES: Arrays = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Adapter:
    """component -> input name -> factor; every component that takes adapters is there, with zeros if need be."""

    name: str | None  # None: no adapter
    factors: dict[str, dict[str, np.ndarray]]
    touched: frozenset[str]  # components that it really changes
    _placed: dict[str, Arrays] = field(default_factory=dict)

    def bound_to(self, engine: Engine) -> Engine:
        """The engine with these factors; itself when its component takes none."""
        factors = self._placed_for(engine)
        return engine if factors is None else AdaptedEngine(engine, factors)

    def _placed_for(self, engine: Engine) -> Arrays | None:
        """Put once where the engine reads them without a copy at every run."""
        factors = self.factors.get(engine.component)
        if factors is None or not hasattr(engine, "zeros"):
            return factors
        if engine.component not in self._placed:
            zeros, copies = allocator(engine), {}
            for array in factors.values():  # several names may share one array of zeros
                if id(array) not in copies:
                    copies[id(array)] = zeros(array.shape, array.dtype)
                    np.copyto(copies[id(array)], array)
            placed = {name: copies[id(array)] for name, array in factors.items()}
            self._placed.setdefault(engine.component, placed)  # another thread may have been first
        return self._placed[engine.component]


class AdaptedEngine:
    """An engine with one adapter's factors always bound; loops see the component without them."""

    def __init__(self, engine: Engine, factors: Arrays) -> None:
        self.component, self.outputs = engine.component, engine.outputs
        self.inputs = {name: spec for name, spec in engine.inputs.items() if not name.startswith(ADAPTER_PREFIX)}
        self._engine, self._factors = engine, factors

    def __getattr__(self, name: str) -> Any:
        """Where the loops' arrays should lie is the real engine's word (engine.allocator)."""
        return getattr(self._engine, name)

    def bind(self, inputs: Arrays, outputs: Arrays) -> Binding:
        return self._engine.bind({**inputs, **self._factors}, outputs)


class Adapters:
    """Those that a model has loaded, and the one that the next call takes."""

    def __init__(self, inputs: Mapping[str, tuple[TensorSpec, ...]], scales: Arrays = NO_SCALES) -> None:
        """`scales` tell by COMPONENT.MODULE.in and .out what inputs and outputs of modules were divided by."""
        self._specs = {component: _adapter_specs(specs) for component, specs in inputs.items()}
        self._takes_none = [component for component, specs in self._specs.items() if not specs]
        self._specs = {component: specs for component, specs in self._specs.items() if specs}
        none = {component: zero_factors(specs) for component, specs in self._specs.items()}
        self._none = Adapter(None, none, frozenset())
        self._scales = scales
        self._loaded: dict[str, Adapter] = {}
        self._lock = threading.Lock()
        self.active = self._none

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def load(self, name: str, folder: Path, strength: float = 1.0) -> None:
        """Reads an adapter's folder; it changes nothing until it is set.  `strength` times what it adds is added."""
        check_strength(strength)
        if not self._specs:
            raise InputError("this bundle takes no adapters: export it again with --adapters")
        parts = {part: folder / part for part in self._specs if (folder / part).is_dir()}
        if parts and (lost := [part for part in self._takes_none if (folder / part / FILES[0]).is_file()]):
            raise InputError(
                f"{folder}: the {lost[0]} of this bundle takes no adapter, and a half would be lost: export it with "
                f"--adapters, or load {folder / next(iter(parts))} alone"
            )
        if not parts and (folder / FILES[0]).is_file():  # one part alone, in PEFT's own layout
            parts = {self._owner(folder): folder}
        if not parts:
            kinds = " or ".join(f"{part}/" for part in self._specs)
            raise InputError(f"{folder}: no adapter; it holds {kinds}, each with {' and '.join(FILES)}")
        factors = dict(self._none.factors)
        with reading(folder):
            for part, path in parts.items():
                factors[part] = read_factors(path, self._specs[part], self._scales_of(part), strength)
        with self._lock:
            self._loaded[name] = Adapter(name, factors, frozenset(parts))

    def set(self, name: str | None) -> None:
        """The adapter of every call that begins from now on; None for none."""
        with self._lock:
            if name is not None and name not in self._loaded:
                known = ", ".join(self._loaded) or "none is"
                raise UsageError(f"adapter {name!r} is not loaded; loaded: {known}")
            self.active = self._none if name is None else self._loaded[name]

    def unload(self, name: str) -> None:
        """Forgets an adapter; when it is the active one, none is."""
        with self._lock:
            if name not in self._loaded:
                raise UsageError(f"adapter {name!r} is not loaded")
            del self._loaded[name]
            if self.active.name == name:  # also one that was loaded anew since it was set
                self.active = self._none

    def _scales_of(self, part: str) -> Arrays:
        return {name.removeprefix(f"{part}."): of for name, of in self._scales.items() if name.startswith(f"{part}.")}

    def _owner(self, folder: Path) -> str:
        modules = {module for module, _ in _tensors(folder)}
        owners = [part for part, specs in self._specs.items() if modules & {_split(name)[0] for name in specs}]
        if len(owners) != 1:
            raise InputError(f"{folder}: its modules are those of no part, or of several: {sorted(modules)[:3]}")
        return owners[0]


def zero_factors(specs: Mapping[str, TensorSpec], rank: int = 1) -> dict[str, np.ndarray]:
    """Factors that change nothing; those of one shape are one array."""
    shapes = {name: tuple(rank if isinstance(e, str) else e for e in spec.shape) for name, spec in specs.items()}
    zeros = {shape: np.zeros(shape, dtype=np.float32) for shape in set(shapes.values())}
    return {name: zeros[shape] for name, shape in shapes.items()}


def read_factors(
    folder: Path, specs: Mapping[str, TensorSpec], scales: Arrays = NO_SCALES, strength: float = 1.0
) -> dict[str, np.ndarray]:
    """A part's A (i, r) and B (r, o), scale and strength in B, all of one rank; InputError when they do not fit.

    `scales` tell by MODULE.in (i) and MODULE.out (o) what the bundle divided inputs and outputs by.
    """
    config, tensors = AdapterConfig.read(folder), _tensors(folder)
    rank = max((array.shape[0] for (_, kind), array in tensors.items() if kind == "a"), default=0)
    known = {_split(name)[0] for name in specs}
    unknown = sorted({module for module, _ in tensors} - known)
    if unknown or not rank:
        raise InputError(f"{folder}: {unknown[0] if unknown else 'no module'} takes no adapter in this bundle")
    if rank > LARGEST_RANK:
        raise InputError(f"{folder}: rank {rank}, expected {LARGEST_RANK} at most")
    factors = zero_factors(specs, rank)
    for (module, kind), array in tensors.items():
        if (module, "b" if kind == "a" else "a") not in tensors:
            raise InputError(f"{folder}: {module} has only one of its two factors")
        name, own = f"{ADAPTER_PREFIX}{module}.{kind}", array.shape[0 if kind == "a" else 1]
        most = specs[name].shape[RANK_AXIS[kind]]  # a number where sizes are fixed
        if isinstance(most, int) and own > most:
            raise InputError(
                f"{folder}: {module} has rank {own}, this bundle takes {most}: export with --adapter-rank {own}"
            )
        factor = array.T * np.float32(1.0 if kind == "a" else strength * config.scale(module, own))
        padded = np.zeros_like(factors[name])
        sizes = tuple(own if axis == RANK_AXIS[kind] else size for axis, size in enumerate(specs[name].shape))
        if factor.shape != sizes:
            raise InputError(f"{folder}: {module} is {factor.shape} for this bundle's {sizes}")
        padded[: factor.shape[0], : factor.shape[1]] = factor
        if kind == "a" and f"{module}.in" in scales:
            padded *= scales[f"{module}.in"][:, None]
        elif kind == "b" and f"{module}.out" in scales:
            padded /= scales[f"{module}.out"]
        if not np.isfinite(padded).all():
            raise InputError(f"{folder}: {module} holds NaN or infinity")
        factors[name] = padded
    return factors


def _adapter_specs(specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs if spec.name.startswith(ADAPTER_PREFIX)}


def _split(name: str) -> tuple[str, str]:
    module, _, kind = name.removeprefix(ADAPTER_PREFIX).rpartition(".")
    return module, kind


def _tensors(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """(module, "a" or "b") -> PEFT's array: A (r, i), B (o, r)."""
    path = folder / FILES[1]
    if not path.is_file():
        raise InputError(f"{path}: missing; an adapter holds {' and '.join(FILES)}")
    found = {}
    for name, array in read_tensors(path).items():
        match = re.fullmatch(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", name)
        if match is None or array.ndim != 2 or not array.size:
            raise InputError(f"{path}: {name} is no factor of a linear layer")
        found[match[1], match[2].lower()] = array.astype(np.float32)
    return found
