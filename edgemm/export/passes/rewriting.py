"""What every pass needs: take one node out of a graph and put several in its place.

A pass gives an `Expand`: it is called with a Patch and the node, adds nodes to the patch, and names the values that
stand for the node's outputs.  Equal nodes of one pass over equal inputs are made once (the mask of thirty layers, for
example).  Only the main graph is walked: ours have no inner ones, and graph_rules.py refuses what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

__all__ = [
    "CONTRIB",
    "Expand",
    "Patch",
    "Shape",
    "attribute",
    "expand_nodes",
    "import_contrib",
    "replace_nodes",
    "value_shapes",
    "value_types",
]

Shape = tuple[int | str | None, ...]
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
LARGE = 256  # numbers in an initializer that is left out when types are inferred: none of ours is a shape


class Patch:
    """The nodes that come in place of one; `make` gives the name of what the new node makes."""

    def __init__(self, model: ModelProto, types: dict[str, int], shapes: dict[str, Shape]) -> None:
        self.types, self.shapes = types, shapes
        self.inputs = [value.name for value in model.graph.input]
        self.nodes: list[NodeProto] = []
        self._model = model
        self._taken = set(types) | {tensor.name for tensor in model.graph.initializer}
        self._made: dict[tuple[Any, ...], str] = {}
        self.base = ""

    def make(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.make_many(op_type, inputs, 1, **attributes)[0]

    def make_many(self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        key = (op_type, tuple(inputs), repr(sorted(attributes.items())))
        names = tuple(self._made.get((*key, index), "") for index in range(outputs))
        if all(names):
            return names
        names = tuple(self._fresh(f"{self.base}/{op_type}") for _ in range(outputs))
        self.nodes.append(helper.make_node(op_type, list(inputs), list(names), name=names[0], **attributes))
        self._made.update({(*key, index): name for index, name in enumerate(names)})
        return names

    def constant(self, value: Any, dtype: Any) -> str:
        """A new initializer, one for each different value."""
        array = np.asarray(value, dtype=dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = self._fresh(f"{self.base}/constant")
            self._model.graph.initializer.append(numpy_helper.from_array(array, self._made[key]))
        return self._made[key]

    def like(self, value: Any, name: str) -> str:
        """A float constant of the same type as the tensor `name`."""
        return self.constant(value, np.float16 if self.types[name] == TensorProto.FLOAT16 else np.float32)

    def size(self, name: str, axis: int, what: str) -> int:
        """The size of an axis that has to be known when the graph is written."""
        shape = self.shapes.get(name, ())
        found = shape[axis] if -len(shape) <= axis < len(shape) else None
        if not isinstance(found, int):
            raise ValueError(f"{what} of {name!r} has shape {shape}, expected a number at axis {axis}")
        return found

    def _fresh(self, name: str) -> str:
        number = 0
        while (free := f"{name}_{number}") in self._taken:
            number += 1
        self._taken.add(free)
        return free


Expand = Callable[[Patch, NodeProto], Sequence[str]]


def expand_nodes(model: ModelProto, op_type: str, expand: Expand, wanted: Callable[[Patch, NodeProto], bool]) -> bool:
    """Replaces, in `model` itself, every wanted node of that type; answers whether there was one."""
    if all(node.op_type != op_type for node in model.graph.node):
        return False
    types, shapes = _inferred(model)
    patch = Patch(model, types, shapes)
    nodes: list[NodeProto] = []
    changed = False
    for node in model.graph.node:
        if node.op_type != op_type or node.domain or not wanted(patch, node):
            nodes.append(node)
            continue
        changed = True
        patch.base, patch.nodes = node.name or node.output[0], []
        values = expand(patch, node)
        nodes += [*patch.nodes, *_renamed(patch, values, node)]
    copies = [_copy(node) for node in nodes]  # a repeated field gives up its elements when it is cleared
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return changed


def replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """In `model` itself, these nodes and no others, without nodes and weights that nobody reads (any more)."""
    wanted = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(_copy(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in wanted]:
        model.graph.initializer.remove(tensor)


def _renamed(patch: Patch, values: Sequence[str], node: NodeProto) -> list[NodeProto]:
    """The last node that makes a value gets the old output's name; what is shared gets an Identity instead."""
    extra = []
    for value, output in zip(values, node.output, strict=True):
        maker = next((made for made in patch.nodes if value in made.output), None)
        if maker is None or any(value in other.input for other in patch.nodes):
            extra.append(helper.make_node("Identity", [value], [output], name=output))
        else:
            maker.output[list(maker.output).index(value)] = output
            patch._made = {key: name for key, name in patch._made.items() if name != value}
    return extra


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def value_types(model: ModelProto) -> dict[str, int]:
    """Name of every value in the graph -> its TensorProto.DataType."""
    return _inferred(model)[0]


def import_contrib(model: ModelProto) -> None:
    """Says in `model` itself that it has operators of ONNX Runtime's own."""
    if all(opset.domain != CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def value_shapes(model: ModelProto) -> dict[str, Shape]:
    return _inferred(model)[1]


def _told_alike(node: NodeProto) -> NodeProto:
    """onnx infers nothing through GroupNormalization: a norm of the same inputs, type and shape stands in for it."""
    if node.op_type != "GroupNormalization" or node.domain:
        return node
    return helper.make_node("InstanceNormalization", list(node.input), list(node.output), node.name)


def _inferred(model: ModelProto) -> tuple[dict[str, int], dict[str, Shape]]:
    """Inferred on a copy without large weights: they would only be carried about."""
    light = ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(_told_alike(node) for node in model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) >= LARGE:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            light.graph.initializer.append(tensor)
    graph = shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        shapes[value.name] = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
        )
    return types, shapes


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
