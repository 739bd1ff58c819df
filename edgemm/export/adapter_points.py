"""Low-rank adapters as inputs of a graph: y = x W becomes y = x W + (x A) B, with A and B given at run time.

LoRA is arXiv:2106.09685.  The weights stay as they were lowered, quantized or not, so an adapter is swapped by binding
other arrays, and A, B, A gives A back bit for bit.  Where a module's product is, is found in the reference graph, which
knows module names; the inputs are put into any graph that was lowered from it, by the names of its values.
Axes: i in, o out, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from safetensors.numpy import save
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.options import ADAPTABLE
from edgemm.export.products import SCOPES
from edgemm.quantize.smoothing import sites
from edgemm.quantize.spec import Spec

__all__ = ["AdapterPoint", "adapter_inputs", "adapter_points", "adapter_scales"]


@dataclass(frozen=True)
class AdapterPoint:
    """One linear layer: y (..., o) is x (..., i) times its weights."""

    module: str  # for example layers.3.self_attn.q_proj
    x: str
    y: str
    width_in: int
    width_out: int


def adapter_points(component: str, reference: ModelProto, names: tuple[str, ...] = ()) -> list[AdapterPoint]:
    """The component's linear layers with one of these names, or with any that ADAPTABLE tells."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in reference.graph.initializer}
    wanted = [name for name in ADAPTABLE.get(component, ()) if not names or name in names]
    points = []
    for node in reference.graph.node:
        module = _module(component, node)
        if module is None or module.rpartition(".")[2] not in wanted:
            continue
        if node.op_type == "MatMul" and node.input[1] in weights:
            width_in, width_out = weights[node.input[1]]
            points.append(AdapterPoint(module, node.input[0], node.output[0], width_in, width_out))
    return points


def adapter_inputs(lowered: ModelProto, points: list[AdapterPoint]) -> None:
    """Puts `adapter.MODULE.a` (i, r) and `adapter.MODULE.b` (r, o) into the graph itself."""
    makers = {output: node for node in lowered.graph.node for output in node.output}
    known = {*makers, *(value.name for value in lowered.graph.input)}
    after: dict[str, list[NodeProto]] = {}  # the base product -> what follows it
    for point in points:
        if point.x not in known or point.y not in makers:
            raise UsageError(f"{point.module}: the lowered graph has no such product; leave it out of --adapters")
        node, base = makers[point.y], f"{point.y}/base"
        node.output[list(node.output).index(point.y)] = base
        factors = []
        for factor, shape in (("a", (point.width_in, "r")), ("b", ("r", point.width_out))):
            name = f"adapter.{point.module}.{factor}"
            lowered.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            factors.append(name)
        inner, delta = f"{point.y}/adapter_inner", f"{point.y}/adapter"
        after[base] = [
            helper.make_node("MatMul", [point.x, factors[0]], [inner], name=inner),
            helper.make_node("MatMul", [inner, factors[1]], [delta], name=delta),
            helper.make_node("Add", [base, delta], [point.y], name=f"{point.y}/adapted"),
        ]
    nodes = []
    for node in lowered.graph.node:
        copy = NodeProto()  # a repeated field gives up its elements when it is cleared
        copy.CopyFrom(node)
        nodes += [copy, *(new for output in node.output for new in after.get(output, ()))]
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)


def _module(component: str, node: NodeProto) -> str | None:
    """The module that a node was traced from, as the component's own weights name it."""
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get(SCOPES, "")
    found = re.findall(rf"'module\.{component}\.([\w.]+)'", scopes)
    return found[-1] if found else None


# What smoothing did to the inputs and outputs of linear layers, so that adapters made for the checkpoint still fit.
#
#     (x / s) ((s A) B) = x A B        the reader of a smoothed activation
#     (x A) (B / s) = (x A B) / s      a linear layer that makes one
#
# The runtime scales an adapter's factors when it loads them, so a step costs nothing more.  The sites are those of
# quantize/smoothing.py.


def adapter_scales(model: nn.Module, specs: Iterable[Spec]) -> bytes | None:
    """`COMPONENT.MODULE.in` and `.out`, as a safetensors file: what inputs and outputs were divided by; None if none
    was.  A layer may be at several sites, and a site in several specs that share what is folded."""
    known = sites(model)
    folded = {
        name: spec.tensors[f"{name}.smooth"] for spec in specs for name in spec.document.smoothed
    }  # site -> factors
    scales: dict[str, np.ndarray] = {}
    for name, factors in folded.items():
        site = known[name]
        for layer in site.readers:
            scales[f"{layer}.in"] = factors.astype(np.float32)
        if isinstance(model.get_submodule(site.maker), nn.Linear) and site.rows is None:
            scales[f"{site.maker}.out"] = factors.astype(np.float32)
    return save(scales) if scales else None
