"""Run one exported graph as the thin runtime does, and compare it with the module that it was traced from."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec, Variant
from edgemm.errors import BundleError, CheckFailedError, EdgemmError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.dialects import DIALECTS
from edgemm.runtimes.adapters import zero_factors
from edgemm.runtimes.backend.engine import GraphFiles, plan_threads
from edgemm.verify.parity import Comparison, compare_arrays
from edgemm.verify.reference_backend import open_engine

__all__ = ["compare_component"]

NO_STEPS: Mapping[str, np.ndarray] = MappingProxyType({})


@torch.no_grad()
def compare_component(
    folder: Path,
    graph: ComponentGraph,
    variant: Variant,
    inputs: dict[str, Tensor],
    steps: Mapping[str, np.ndarray] = NO_STEPS,  # (g, d) of an int8 cache, by `key.LAYER` and `value.LAYER`
) -> Comparison:
    """The files of `variant` below `folder` against the module.

    Raises CheckFailedError when they cannot be run, or take and give other tensors than the variant says.
    """
    answer = graph.module(*(inputs[spec.name] for spec in graph.inputs))
    wanted = [tensor.contiguous().numpy() for tensor in ((answer,) if isinstance(answer, Tensor) else answer)]
    found = [np.zeros_like(_fitted(array, spec, steps)) for array, spec in zip(wanted, variant.outputs, strict=True)]
    files = GraphFiles(graph.name, folder / variant.graph, folder / variant.data if variant.data else None, variant)
    try:
        engine = open_engine(files, "CPUExecutionProvider", plan_threads(), threading.Lock())
        given = {
            spec.name: _fitted(inputs[spec.name].numpy(), spec, steps) for spec in variant.inputs if spec.name in inputs
        }
        factors = {spec.name: spec for spec in variant.inputs if spec.name.startswith(ADAPTER_PREFIX)}
        given |= zero_factors(factors)  # without an adapter the graph is the module
        results = {spec.name: array for spec, array in zip(variant.outputs, found, strict=True)}
        for rows in _rows(graph.name, len(wanted[0])):
            engine.bind(
                {name: array if name in factors else array[rows] for name, array in given.items()},
                {name: array[rows] for name, array in results.items()},
            ).run()
    except EdgemmError as error:
        if isinstance(error, BundleError) or type(error) is EdgemmError:
            raise CheckFailedError(f"{_named(graph, variant)} does not run: {error}") from error
        raise
    found = [_real(array, spec, steps) for array, spec in zip(found, variant.outputs, strict=True)]
    same_part = [array[tuple(map(slice, other.shape))] for array, other in zip(found, wanted, strict=True)]
    return compare_arrays(_named(graph, variant), variant.precision, same_part, wanted)


def _rows(component: str, count: int) -> list[slice]:
    """All at once, but a prompt after a prompt one row at a time, as the runtime reads it (docs/bundle.md)."""
    return [slice(row, row + 1) for row in range(count)] if component == "transformer" else [slice(None)]


def _named(graph: ComponentGraph, variant: Variant) -> str:
    dialect = variant.dialect.partition("+")[0]
    own = f"{dialect}, " if dialect in DIALECTS else ""
    return f"{graph.name} ({own}{variant.precision})"


def _fitted(array: np.ndarray, spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    """In the variant's type, with empty slots up to the size that it fixes."""
    if spec.dtype == "int8":
        array = np.rint(array / _step(spec, steps)).clip(-128, 127)
    sizes = [entry if isinstance(entry, int) else size for entry, size in zip(spec.shape, array.shape, strict=True)]
    fitted = np.zeros(sizes, dtype=spec.dtype)
    fitted[tuple(map(slice, array.shape))] = array
    return fitted


def _real(array: np.ndarray, spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    return array * _step(spec, steps) if spec.dtype == "int8" else array


def _step(spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    """past_key.3 -> (g, 1, d)"""
    return steps[spec.name.partition("_")[2]][:, None]
