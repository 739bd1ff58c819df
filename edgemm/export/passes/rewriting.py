"""What every pass needs beside onnx-ir: nodes put in the place of others, types and shapes, what is unread dropped.

Passes change the ir.Model that they are given; most answer whether they did.  A value that stands for another takes its
name, type and shape, so what is looked for later is found by its name, also behind operators that onnx infers nothing
through.  Only the main graph is walked: ours have no inner ones, and graph_rules.py refuses what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

__all__ = [
    "CONTRIB",
    "Dims",
    "Writer",
    "dims",
    "drop_unread",
    "expand_nodes",
    "infer",
    "made_by",
    "new_tokens",
    "nodes_of",
    "stored",
]

Dims = tuple[int | str | None, ...]
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Writer:
    """Adds nodes and constants to a graph that is being rewritten; equal ones are made once."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.place: ir.Node | None = None  # new nodes stand before it: who walks a graph forwards finds them made
        self._made: dict[tuple[object, ...], tuple[ir.Value, ...]] = {}
        self._unnamed: set[ir.Value] = set()  # made here, and no other's name taken yet
        self._taken = {*ir.convenience.create_value_mapping(model.graph), *(node.name for node in model.graph)}

    def make(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self.make_many(op_type, inputs, 1, domain, **attributes)[0]

    def make_many(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        key = (op_type, domain, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._made:
            assert self.place is not None
            node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
            for value in node.outputs:
                value.name = self._fresh(f"{self._base()}/{op_type}")
            node.name = node.outputs[0].name
            self.graph.insert_before(self.place, node)
            self._made[key] = tuple(node.outputs)
            self._unnamed |= set(node.outputs)
        return self._made[key]

    def constant(self, value: Any, dtype: Any = None, name: str = "") -> ir.Value:
        """A new initializer; those without a name of their own are one for each different value."""
        if dtype is None and not isinstance(value, np.ndarray):
            dtype = np.int64  # sizes and axes
        tensor = value if isinstance(value, ir.TensorProtocol) else ir.Tensor(np.asarray(value, dtype, order="C"))
        key = ("constant", name) if name else ("constant", tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if key not in self._made:
            tape = ir.tape.Tape(self.graph)
            self._made[key] = (tape.initializer(tensor, self._fresh(name or f"{self._base()}/constant")),)
        return self._made[key][0]

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """A constant of the same type as the tensor `value`."""
        assert value.dtype is not None
        return self.constant(number, value.dtype.numpy())

    def replace(self, node: ir.Node, *values: ir.Value) -> None:
        """`values` stand for the node's outputs; one that stands for another already, or is nobody's new, stays as it
        is, and a copy of it is the graph's output."""
        for old, value in zip(node.outputs, values, strict=True):
            if value in self._unnamed:
                self._unnamed.remove(value)
                producer = value.producer()
                assert producer is not None
                producer.name = value.name = old.name
                value.type, value.shape = old.type, old.shape
            elif old.is_graph_output():
                copy = ir.node("Identity", [value], name=old.name)
                self.graph.insert_before(node, copy)
                (value,) = copy.outputs
                value.name, value.type, value.shape = old.name, old.type, old.shape
            old.replace_all_uses_with(value, replace_graph_outputs=True)
        if self.place is node:
            self.place = None
        self.graph.remove(node, safe=True)

    def _base(self) -> str:
        return self.place.name or self.place.op_type if self.place else "new"

    def _fresh(self, name: str) -> str:
        free, number = name, 0
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


Write = Callable[[Writer, ir.Node], Sequence[ir.Value]]  # makes what stands for a node's outputs


def expand_nodes(
    model: ir.Model, op_type: str, write: Write, wanted: Callable[[ir.Node], bool] = lambda node: True
) -> bool:
    """Replaces every wanted node of that type; answers whether there was one."""
    found = nodes_of(model, op_type)
    if found:
        infer(model)
    found, writer = [node for node in found if wanted(node)], Writer(model)
    for node in found:
        writer.place = node
        writer.replace(node, *write(writer, node))
    if found:
        drop_unread(model)
    return bool(found)


def nodes_of(model: ir.Model, op_type: str, domain: str = "") -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type and node.domain == domain]


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def stored(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a weight."""
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return None if tensor is None else tensor.numpy()


def dims(value: ir.Value | None) -> Dims:
    """() also where nothing is known."""
    shape = value.shape if value is not None else None
    return tuple(entry if isinstance(entry, int) else entry.value for entry in shape or ())


def new_tokens(writer: Writer, inputs: Mapping[str | None, ir.Value]) -> ir.Value:
    """s, how many tokens a run of a transformer reads: one number in a vector."""
    return writer.make("Shape", inputs["input_ids"], start=1, end=2)


def drop_unread(model: ir.Model) -> None:
    """Nodes and weights that nobody reads (any more)."""
    RemoveUnusedNodesPass()(model)


def infer(model: ir.Model) -> None:
    """Types and shapes of all values, as far as onnx knows the operators.

    It infers nothing through GroupNormalization: a norm of the same inputs, type and shape stands in for it.
    """
    norms = nodes_of(model, "GroupNormalization")
    for node in norms:
        node.op_type = "InstanceNormalization"
    ShapeInferencePass()(model)
    for node in norms:
        node.op_type = "GroupNormalization"
