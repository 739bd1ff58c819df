"""A float32 graph in float16, with islands that stay in float32, every change of precision an explicit Cast.

Islands: what sines and cosines are made of (a position of 2,000 in float16 is off by a whole radian), whatever the
caller names, and the statistics of norms, which the operators keep in float32 themselves (stash_type).  Inputs and
outputs stay float32 but for those that `half` picks: keys and values, which would double the traffic of a cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgemm.export.passes.rewriting import Writer, drop_unread, infer

__all__ = ["half_precision"]

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
ANGLES = ("Cos", "Sin")
SCALES = 2  # which input of Resize


def half_precision(
    model: ir.Model, half: Callable[[str], bool], island: Callable[[ir.Node], bool] = lambda node: False
) -> bool:
    """Changes `model` itself.  `half` picks inputs and outputs, `island` nodes that stay, with all before them."""
    infer(model)
    graph = model.graph
    kinds = {value.dtype for value in ir.convenience.create_value_mapping(graph).values()}
    if kinds & {HALF, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}:
        raise ValueError("the graph is not in float32 alone")
    wanted = {value: HALF if half(value.name or "") else FLOAT for value in graph.outputs if value.dtype == FLOAT}
    for value in graph.inputs:
        if value.dtype == FLOAT and half(value.name or ""):
            _say(value, HALF)
    kept, writer = _with_ancestors(model, island), _Casts(model)
    for node in list(graph):
        writer.convert(node, FLOAT if node in kept else HALF)
    for place, value in enumerate(graph.outputs):
        if wanted.get(value, value.dtype) != value.dtype:
            name, inner = value.name, "float16" if value.dtype == HALF else "float32"
            value.name = f"{name}/{inner}"
            cast = ir.node("Cast", [value], {"to": wanted[value]}, name=f"{name}/edge")
            cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
            _say(cast.outputs[0], wanted[value])
            graph.append(cast)
            graph.outputs[place] = cast.outputs[0]
    drop_unread(model)
    return True


def _with_ancestors(model: ir.Model, island: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """The nodes that stay in float32."""
    waiting = [node for node in model.graph if node.op_type in ANGLES or island(node)]
    kept: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in kept:
            kept.add(node)
            waiting += node.predecessors()
    return kept


class _Casts:
    """Floats in the type that a node wants them in, made when first asked for; a value's dtype is what it is now."""

    def __init__(self, model: ir.Model) -> None:
        self.writer = Writer(model)
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node, precision: ir.DataType) -> None:
        self.writer.place = node
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, HALF):
                always = node.op_type == "Resize" and place == SCALES  # the operator knows no other type
                node.replace_input_with(place, self._in(value, FLOAT if always else precision))
        if precision == FLOAT:
            return
        for value in node.outputs:
            if value.dtype == FLOAT:
                _say(value, HALF)
        for name, item in list(node.attributes.items()):
            if name == "to" and node.op_type == "Cast" and item.as_int() == FLOAT:
                node.attributes[name] = ir.AttrInt64(name, HALF)
            elif item.type == ir.AttributeType.TENSOR and item.as_tensor().dtype == FLOAT:
                node.attributes[name] = ir.AttrTensor(name, _in_half(item.as_tensor()))

    def _in(self, value: ir.Value, precision: ir.DataType) -> ir.Value:
        if value.dtype == precision:
            return value
        if (value, precision) not in self.made:
            name = f"{value.name}/{'float16' if precision == HALF else 'float32'}"
            if value.is_initializer() and value.const_value is not None:
                other = self.writer.constant(_in_half(value.const_value), name=name)
            else:
                other = self.writer.make("Cast", value, to=precision)
                other.name, other.shape = name, value.shape
                _say(other, precision)
            self.made[value, precision] = other
        return self.made[value, precision]


def _say(value: ir.Value, dtype: ir.DataType) -> None:
    """A type of its own: clones of a graph share theirs."""
    value.type = ir.TensorType(dtype)


def _in_half(tensor: ir.TensorProtocol) -> ir.Tensor:
    array = tensor.numpy()
    finite = np.abs(array[np.isfinite(array)])
    if finite.size and finite.max() > LARGEST:
        raise ValueError(f"{tensor.name!r} holds {finite.max():g}, float16 ends at {LARGEST:g}: keep it in float32")
    return ir.Tensor(array.astype(np.float16))
