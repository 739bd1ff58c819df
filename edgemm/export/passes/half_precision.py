"""A float32 graph in float16, with islands that stay in float32, every change of precision an explicit Cast.

Islands: what sines and cosines are made of (a position of 2,000 in float16 is off by a whole radian), whatever the
caller names, and the statistics of norms, which the operators keep in float32 themselves (stash_type).  Inputs and
outputs stay float32 but for those that `half` picks: keys and values, which would double the traffic of a cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.export.passes.rewriting import value_types

__all__ = ["half_precision"]

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
ANGLES = ("Cos", "Sin")
SCALES = 2  # which input of Resize


def half_precision(
    model: ModelProto, half: Callable[[str], bool], island: Callable[[NodeProto], bool] = lambda node: False
) -> bool:
    """Changes `model` itself.  `half` picks inputs and outputs, `island` nodes that stay, with all before them."""
    types = value_types(model)
    if any(kind in (HALF, TensorProto.BFLOAT16, TensorProto.DOUBLE) for kind in types.values()):
        raise ValueError("the graph is not in float32 alone")
    converter = _Converter(model, types, half, _with_ancestors(model, island))
    converter.convert()
    return True


def _with_ancestors(model: ModelProto, island: Callable[[NodeProto], bool]) -> set[int]:
    """Places, in the graph's list, of the nodes that stay in float32."""
    makers = {output: place for place, node in enumerate(model.graph.node) for output in node.output}
    waiting = [place for place, node in enumerate(model.graph.node) if node.op_type in ANGLES or island(node)]
    kept: set[int] = set()
    while waiting:
        place = waiting.pop()
        if place not in kept:
            kept.add(place)
            waiting += [makers[name] for name in model.graph.node[place].input if name in makers]
    return kept


class _Converter:
    def __init__(self, model: ModelProto, types: dict[str, int], half: Callable[[str], bool], kept: set[int]) -> None:
        self.graph, self.types, self.kept = model.graph, types, kept
        self.half = half
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.now: dict[str, int] = {}  # float values: the type that they have in the new graph
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}

    def convert(self) -> None:
        for value in self.graph.input:
            if self.types[value.name] == FLOAT:
                self.now[value.name] = HALF if self.half(value.name) else FLOAT
                value.type.tensor_type.elem_type = self.now[value.name]
        for place, node in enumerate(self.graph.node):
            self._convert_node(node, FLOAT if place in self.kept else HALF)
        for value in self.graph.output:
            if self.types[value.name] == FLOAT:
                self._convert_output(value.name, HALF if self.half(value.name) else FLOAT)
                value.type.tensor_type.elem_type = HALF if self.half(value.name) else FLOAT
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        copies = [_copied(tensor) for tensor in kept]
        del self.graph.initializer[:]
        self.graph.initializer.extend(copies)

    def _convert_node(self, node: NodeProto, precision: int) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name and self.types[name] == FLOAT:
                always = node.op_type == "Resize" and place == SCALES  # the operator knows no other type
                copy.input[place] = self._in(name, FLOAT if always else precision)
        if precision == HALF:
            for item in copy.attribute:
                if item.name == "to" and node.op_type == "Cast" and item.i == FLOAT:
                    item.i = HALF
                elif item.type == AttributeProto.TENSOR and item.t.data_type == FLOAT:
                    item.t.CopyFrom(_in_half(item.t, item.t.name))
        self.nodes.append(copy)
        self.now |= {name: precision for name in node.output if name and self.types[name] == FLOAT}

    def _in(self, name: str, precision: int) -> str:
        """The value under the name that it has in this precision; made when first asked for."""
        if (FLOAT if name in self.weights else self.now[name]) == precision:
            return name
        if (name, precision) not in self.made:
            other = f"{name}/{'float16' if precision == HALF else 'float32'}"
            self.made[name, precision] = other
            if name in self.weights:
                self.graph.initializer.append(_in_half(self.weights[name], other))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], name=other, to=precision))
        return self.made[name, precision]

    def _convert_output(self, name: str, wanted: int) -> None:
        if self.now[name] == wanted:
            return
        inner = f"{name}/{'float16' if self.now[name] == HALF else 'float32'}"
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, found in enumerate(names):
                    if found == name:
                        names[place] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"{name}/edge", to=wanted))


def _in_half(tensor: TensorProto, name: str) -> TensorProto:
    array = numpy_helper.to_array(tensor)
    finite = np.abs(array[np.isfinite(array)])
    if finite.size and finite.max() > LARGEST:
        raise ValueError(f"{tensor.name!r} holds {finite.max():g}, float16 ends at {LARGEST:g}: keep it in float32")
    return numpy_helper.from_array(array.astype(np.float16), name)


def _copied(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy
