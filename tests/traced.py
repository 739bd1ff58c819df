"""trace(), once a run for what is the same: tracing takes nearly all of the time of a small model's export.

Whichever test asks first, in whichever of the run's processes, writes the graph into a folder that all of them share
(conftest.py); the next reads it.  The same is: of one name, made of the same modules with the same settings and
numbers, with the same inputs and outputs.  What cannot be pickled, or is large, is traced anew.
A test of trace() itself calls edgemm.export.trace.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.trace import trace
from edgemm.model.kept_weights import place_of, widened
from tests.shared import alone

__all__ = ["traced"]

LARGE = 1 << 24  # numbers: what has more is rather traced anew than kept as a file
folder: Path | None = None  # of the run, as conftest.py says


def traced(graph: ComponentGraph) -> ir.Model:
    """As trace(graph); the model is the caller's own, to change as it likes."""
    content = content_of(graph)
    if folder is None or content is None:
        return trace(graph)
    path = folder / f"{graph.name}-{content}.onnx"
    with alone(path.with_suffix(".lock")):
        if not path.exists():
            part = path.with_suffix(".part")
            ir.save(trace(graph), part, format="protobuf")
            os.replace(part, path)
    return ir.load(path)


def content_of(graph: ComponentGraph) -> str | None:
    """A digest of all that trace() reads of it; None for what is large or cannot be pickled."""
    if sum(weight.numel() for weight in graph.module.state_dict().values()) > LARGE:
        return None
    digest = _Digest()
    try:
        _Pickler(digest).dump((graph.name, graph.module, graph.inputs, graph.outputs, dict(graph.multiples)))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return digest.sha256.hexdigest()


class _Digest:
    """What a pickler writes into, and nothing is kept."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, part: Any) -> None:
        self.sha256.update(part)


class _Pickler(pickle.Pickler):
    """Tensors as their numbers, and which of them share memory; a parameter that stays in its file is like others."""

    def __init__(self, digest: _Digest) -> None:
        super().__init__(digest)
        self.fast = True  # whether two equal settings are one object says nothing of the graph
        self.places: dict[int, int] = {}

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return NotImplemented
        kept = thing.detach()
        numbers, place = widened(kept), self.places.setdefault(place_of(kept), len(self.places))
        content = numbers.flatten().view(torch.uint8).numpy().tobytes()
        return _Tensor, (tuple(numbers.shape), str(numbers.dtype), content, place)


def _Tensor(*_: Any) -> None:
    """Stands in a pickle for a tensor; nothing is ever unpickled."""
