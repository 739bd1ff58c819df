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
import onnx_ir as ir
from safetensors.numpy import save
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.options import ADAPTABLE
from edgemm.export.passes.rewriting import dims, nodes_of
from edgemm.export.products import SCOPES
from edgemm.quantize.smoothing import sites
from edgemm.quantize.spec import Spec

__all__ = ["AdapterPoint", "adapter_inputs", "adapter_points", "adapter_scales", "delta_to_residual"]

BASE = "/base"  # the product beside an adapter's


@dataclass(frozen=True)
class AdapterPoint:
    """One linear layer: y (..., o) is x (..., i) times its weights."""

    module: str  # for example layers.3.self_attn.q_proj
    x: str
    y: str
    width_in: int
    width_out: int


def adapter_points(component: str, reference: ir.Model, names: tuple[str, ...] = ()) -> list[AdapterPoint]:
    """The component's linear layers with one of these names, or with any that ADAPTABLE tells."""
    wanted = [name for name in ADAPTABLE.get(component, ()) if not names or name in names]
    points = []
    for node in nodes_of(reference, "MatMul"):
        (x, weight), y = node.inputs, node.outputs[0]
        module = _module(component, node)
        if module is None or module.rpartition(".")[2] not in wanted or weight is None or not weight.is_initializer():
            continue
        width_in, width_out = dims(weight)
        assert x and x.name and y.name and isinstance(width_in, int) and isinstance(width_out, int)
        points.append(AdapterPoint(module, x.name, y.name, width_in, width_out))
    return points


def adapter_inputs(lowered: ir.Model, points: list[AdapterPoint]) -> None:
    """Puts `adapter.MODULE.a` (i, r) and `adapter.MODULE.b` (r, o) into the graph itself."""
    graph = lowered.graph
    values = ir.convenience.create_value_mapping(graph)
    for point in points:
        x, base = values.get(point.x), values.get(point.y)
        node = base.producer() if base is not None else None
        if x is None or base is None or node is None:
            raise UsageError(f"{point.module}: the lowered graph has no such product; leave it out of --adapters")
        factors = [
            ir.val(f"adapter.{point.module}.{factor}", ir.DataType.FLOAT, shape)
            for factor, shape in (("a", (point.width_in, "r")), ("b", ("r", point.width_out)))
        ]
        graph.inputs.extend(factors)
        adapted = ir.val(point.y, type=base.type, shape=base.shape)
        base.replace_all_uses_with(adapted, replace_graph_outputs=True)
        base.name = f"{point.y}{BASE}"
        inner = _node("MatMul", [x, factors[0]], f"{point.y}/adapter_inner")
        delta = _node("MatMul", [inner.outputs[0], factors[1]], f"{point.y}/adapter")
        last = ir.node("Add", [base, delta.outputs[0]], outputs=[adapted], name=f"{point.y}/adapted")
        graph.insert_after(node, [inner, delta, last])
        values[point.y] = adapted


def _node(op_type: str, inputs: list[ir.Value], name: str) -> ir.Node:
    return ir.node(op_type, inputs, outputs=[ir.val(name)], name=name)


def _module(component: str, node: ir.Node) -> str | None:
    """The module that a node was traced from, as the component's own weights name it."""
    found = re.findall(rf"'module\.{component}\.([\w.]+)'", node.metadata_props.get(SCOPES, ""))
    return found[-1] if found else None


def delta_to_residual(model: ir.Model) -> bool:
    """The low-rank product goes to the residual stream directly: r + (x W + d) becomes (r + d) + x W, where only that
    one sum reads the inner one.

    TensorRT for RTX 1.7 fails on the first form in a transformer whose o_proj and down_proj both take adapters
    ("value.h: CHECK(is_const())"), whatever the sizes; it builds the second.
    """
    moved, made = False, {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        made.update(node.outputs)
        if node.op_type != "Add" or not (node.inputs[0] and (node.inputs[0].name or "").endswith(BASE)):
            continue
        (summed,), (base, delta) = node.outputs, node.inputs
        uses = list(summed.uses())
        if summed.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
            continue
        reader, side = uses[0]
        residual = reader.inputs[1 - side]
        if residual not in made:
            continue  # what it would be added to comes later
        for place, value in enumerate((residual, delta)):
            node.replace_input_with(place, value)
        reader.replace_input_with(1 - side, summed)
        reader.replace_input_with(side, base)
        moved = True
    return moved


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
