"""Run one exported graph as the thin runtime does, and compare it with the module that it was traced from."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgemm.errors import BundleError, CheckFailedError, EdgemmError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.parity import Comparison, compare_arrays
from edgemm.manifest import Variant
from edgemm.runtimes.onnxruntime_backend import open_engine
from edgemm.runtimes.threads import plan_threads

__all__ = ["compare_component"]


@torch.no_grad()
def compare_component(folder: Path, graph: ComponentGraph, variant: Variant, inputs: dict[str, Tensor]) -> Comparison:
    """The files of `variant` below `folder` against the module.

    Raises CheckFailedError when they cannot be run, or take and give other tensors than the variant says.
    """
    answer = graph.module(*(inputs[spec.name] for spec in graph.inputs))
    wanted = [tensor.contiguous().numpy() for tensor in ((answer,) if isinstance(answer, Tensor) else answer)]
    found = [np.zeros_like(array) for array in wanted]
    data = folder / variant.data if variant.data else None
    try:
        engine = open_engine(
            graph.name, folder / variant.graph, data, variant, "CPUExecutionProvider", plan_threads(), threading.Lock()
        )
        given = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        engine.bind(given, {spec.name: array for spec, array in zip(graph.outputs, found, strict=True)}).run()
    except EdgemmError as error:
        if isinstance(error, BundleError) or type(error) is EdgemmError:
            raise CheckFailedError(f"{graph.name} ({variant.precision}) does not run: {error}") from error
        raise
    return compare_arrays(f"{graph.name} ({variant.precision})", variant.precision, found, wanted)
