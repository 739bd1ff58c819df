"""Trace a component once, in float32, to its reference graph: opset 24, the contract's axis names, weights inside.

Lowering it for a target comes after (lower_cpu.py), writing it after that (graph_file.py).
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgemm.bundle.components import TensorSpec
from edgemm.errors import CheckFailedError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.passes.rewriting import dims, infer
from edgemm.export.products import SCOPES
from edgemm.model.kept_weights import KeptTensor, shapes_only

__all__ = ["OPSET", "trace", "without_warnings"]

OPSET = 24
# of what it is traced with: no 0 or 1, no two alike; of pixels, so many times what a side is a multiple of
SIZES = {"b": 2, "s": 5, "m": 7, "t": 6, "k": 3, "T": 256, "h": 9, "w": 10, "H": 11, "W": 12}
LONGEST = 1 << 20


class _Positional(nn.Module):
    """One signature for every component, so that axes are given to the tracer in one way."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.module(*tensors)


def trace(graph: ComponentGraph) -> ir.Model:
    """The component as an ONNX model, whose weights are the module's own: it is not to be changed afterwards.

    Raises CheckFailedError when the tracer took the size of a named axis for a constant.
    """
    from torch._dynamo import config as dynamo  # as slow to import as the rest of torch

    dims = {name: torch.export.Dim(f"{name}_", min=1, max=LONGEST) for name in SIZES}
    dims |= {name: times * dims[name] for name, times in graph.multiples.items()}
    axes = tuple(
        {axis: dims[entry] for axis, entry in enumerate(spec.shape) if isinstance(entry, str)} for spec in graph.inputs
    )
    # Shapes that the tracer keeps for later are compared by their named axes: that takes longer than making them anew.
    shapes_anew = dynamo.patch(fake_tensor_cache_enabled=False)
    with without_warnings(), shapes_anew, _one_table(), _rare_searches(), shapes_only(graph.module) as kept:
        program = torch.onnx.export(
            _Positional(graph.module).eval(),
            tuple(_example(spec, graph.multiples) for spec in graph.inputs),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(axes,),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _put_back(model, kept)
    for node in model.graph:
        _forget_notes(node)
    for specs, values in ((graph.inputs, model.graph.inputs), (graph.outputs, model.graph.outputs)):
        for spec, value in zip(specs, values, strict=True):
            _name_axes(graph.name, spec, value)
    infer(model)
    return model


@cache
def _table() -> tuple[Any, Any, Any]:
    """Where torch has its table of operators, how it makes it, and the same that makes it once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry as registry  # as slow to import

    return registry, vars(registry)["from_torchlib"], staticmethod(cache(registry.from_torchlib))


@contextlib.contextmanager
def _one_table() -> Iterator[None]:
    """torch.onnx.export() makes its table anew for each graph, in a quarter of its time, and then only reads it."""
    registry, by_torch, once = _table()
    registry.from_torchlib = once
    try:
        yield
    finally:
        registry.from_torchlib = by_torch


@contextlib.contextmanager
def _rare_searches() -> Iterator[None]:
    """A tracer makes objects by the million, and keeps them: each search for cycles among them finds next to none."""
    before = gc.get_threshold()
    if before[0]:  # 0 is none at all
        gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _put_back(model: ir.Model, kept: Mapping[int, KeptTensor]) -> None:
    """Weights where their shapes stood, to be read when somebody asks for them; the tracer has turned some round.

    Raises CheckFailedError where it made anything else of such a shape: then its numbers would be nobody's.
    """
    for value in model.graph.initializers.values():
        stand = getattr(value.const_value, "raw", None)
        array = stand.numpy() if isinstance(stand, Tensor) else stand
        if not isinstance(array, np.ndarray) or array.ctypes.data not in kept:
            continue
        weight = kept[array.ctypes.data]
        turned = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
        if tuple(array.shape) != tuple(weight.shape[::-1] if turned else weight.shape):
            raise CheckFailedError(f"{value.name}: {tuple(array.shape)} was made of a weight {tuple(weight.shape)}")
        read = partial(_read, weight, turned)
        value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(array.shape), name=value.name)


def _read(weight: KeptTensor, turned: bool) -> ir.Tensor:
    numbers = weight.in_float().numpy()
    return ir.Tensor(numbers.T if turned else numbers)


def _forget_notes(node: ir.Node) -> None:
    """Of what the tracer notes beside a node only its place in the module is used; the rest may hold a function's
    address, and differ from one process to the next.  Shapes have the tracer's own names of axes."""
    for name in node.metadata_props.keys() - {SCOPES}:
        del node.metadata_props[name]
    for value in node.outputs:
        if not value.is_graph_output():
            value.shape = None


def _example(spec: TensorSpec, multiples: Mapping[str, int]) -> Tensor:
    """Zeros: only shapes and types leave a trace."""
    shape = [entry if isinstance(entry, int) else SIZES[entry] * multiples.get(entry, 1) for entry in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _name_axes(component: str, spec: TensorSpec, value: ir.Value) -> None:
    """Write the contract's axis names over the tracer's."""
    assert value.name == spec.name
    for found, entry in zip(dims(value), spec.shape, strict=True):
        if isinstance(found, int) and found != entry:
            raise CheckFailedError(f"{component}: tracing fixed axis {entry!r} of {spec.name} at {found}")
    value.shape = ir.Shape(spec.shape)


# What libraries tell their own developers is left out: log lines on the root logger, bars and notes on stdout.


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Errors still pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
