"""Products with weights in a traced graph, by the layer that they come from, and how to put other nodes there.

What the other nodes are is each lowering's own: lower_*.py.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.bundle.components import COMPONENTS
from edgemm.export.passes.rewriting import replace_nodes
from edgemm.quantize.spec import HEAD

__all__ = ["SCOPES", "Product", "Table", "Writer", "copy_to_rewrite", "products_of", "rewrite_products", "tables_of"]

PRODUCTS = ("MatMul", "Gemm")
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm of an activation with a constant, or the embedding's Gather."""

    node: NodeProto
    layer: str  # torch's name: transformer.layers.3.mlp.down_proj
    x: str  # the activation, or the ids that are looked up
    bias: str | None
    dtype: int  # TensorProto.FLOAT or FLOAT16, of the weight
    stored: TensorProto  # the constant
    across: bool = False  # it lies (n, k), not [k, n]

    @property
    def is_lookup(self) -> bool:
        return self.node.op_type == "Gather"

    def weight(self) -> np.ndarray:
        """(n, k)."""
        array = numpy_helper.to_array(self.stored)
        return array if self.across else array.T


@dataclass(frozen=True)
class Table:
    """A constant that is no product's, but may be stored small: a filter of one pixel, letters of visual words."""

    layer: str
    stored: TensorProto

    def weight(self) -> np.ndarray:
        """(n, k)."""
        array = numpy_helper.to_array(self.stored)
        return array.reshape(len(array), -1)


class Writer:
    """Adds nodes and constants to a graph that is being rewritten; equal ones are made once."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[object, ...], tuple[str, ...]] = {}
        self.taken = {name for node in model.graph.node for name in node.output}
        self.taken |= {tensor.name for tensor in model.graph.initializer}

    def constant(self, name: str, array: np.ndarray | TensorProto) -> str:
        """A weight under a name of its own."""
        if ("constant", name) not in self.made:
            tensor = array if isinstance(array, TensorProto) else numpy_helper.from_array(np.ascontiguousarray(array))
            tensor.name = self._fresh(name)
            self.model.graph.initializer.append(tensor)
            self.made["constant", name] = (tensor.name,)
        return self.made["constant", name][0]

    def add(
        self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", output: str = "", **attributes: Any
    ) -> list[str]:
        """`output` names what others know already: that node is made even where there is an equal one."""
        if output:
            self.nodes.append(
                helper.make_node(op_type, list(inputs), [output], name=output, domain=domain, **attributes)
            )
            return [output]
        key = (op_type, inputs, repr(sorted(attributes.items())))
        if key not in self.made:
            base = next(filter(None, inputs)) if inputs else op_type
            names = tuple(self._fresh(f"{base}/{op_type}") for _ in range(outputs))
            node = helper.make_node(op_type, list(inputs), list(names), name=names[0], domain=domain, **attributes)
            self.nodes.append(node)
            self.made[key] = names
        return list(self.made[key])

    def _fresh(self, name: str) -> str:
        free, number = name, 0
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free


def rewrite_products(
    model: ModelProto, write: Callable[[Writer, Product], str | None], component: str = "transformer"
) -> None:
    """In `model` itself: `write` answers with the value that stands for the product (bias included), None to leave it.

    Weights that nobody reads any more are dropped.
    """
    found = {id(product.node): product for product in products_of(model, component)}
    writer = Writer(model)
    before = list(model.graph.node)
    for node in before:
        product = found.get(id(node))
        value = write(writer, product) if product else None
        if value is None:
            writer.nodes.append(node)
        else:
            _rename_output(writer.nodes, value, node.output[0])
            writer.made = {key: names for key, names in writer.made.items() if value not in names}
    replace_nodes(model, writer.nodes)


def copy_to_rewrite(model: ModelProto, replaced: Callable[[Product], bool], component: str) -> ModelProto:
    """A copy whose products may be rewritten where `replaced` says so: weights that nobody else reads are sizes without
    numbers in it, because a second copy of a large model is what memory has no room for."""
    gone = {id(product.node): product for product in products_of(model, component) if replaced(product)}
    read = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        product = gone.get(id(node))
        if read & set(node.output):
            read |= {product.x, product.bias or ""} if product else set(node.input)
    copy = ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
    )
    inner = model.graph
    copy.graph.MergeFrom(
        GraphProto(
            name=inner.name, node=inner.node, input=inner.input, output=inner.output, value_info=inner.value_info
        )
    )
    for tensor in inner.initializer:
        if tensor.name in read:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return copy


def products_of(model: ModelProto, component: str) -> Iterator[Product]:
    """In the graph's order; a layer whose name does not begin with a component's gets this one's."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in weights}
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Gather" and node.input[0] in weights and _is_embedding(node):
            table = weights[node.input[0]]
            yield Product(node, HEAD, node.input[1], None, table.data_type, table, True)
        elif node.op_type in PRODUCTS:
            name = turned.get(node.input[1], node.input[1])
            if name not in weights or len(weights[name].dims) != 2:
                continue
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            flagged = any(a.name == "transB" and a.i for a in node.attribute)
            across = flagged != (node.input[1] in turned)
            layer = _layer_of(node, name, component) or f"{component}.product_{number}"
            yield Product(node, layer, node.input[0], bias, weights[name].data_type, weights[name], across)


def tables_of(model: ModelProto, component: str) -> Iterator[Table]:
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            filters = weights[node.input[1]]
            if all(size == 1 for size in filters.dims[2:]) and all(
                a.name != "group" or a.i == 1 for a in node.attribute
            ):
                yield Table(f"{component}.{filters.name.removeprefix('module.').removesuffix('.weight')}", filters)
        elif node.op_type == "GatherND" and node.input[0] in weights:
            yield Table(f"{component}.words.letters", weights[node.input[0]])


def _is_embedding(node: NodeProto) -> bool:
    """Where the head is tied the table may go by the head's name."""
    return "embed_tokens.weight" in node.input[0] or node.input[1] == "input_ids"


def _layer_of(node: NodeProto, weight: str, component: str) -> str:
    if "embed_tokens.weight" in weight:
        return HEAD
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get(SCOPES, "[]")
    names: Sequence[str] = [name for name in ast.literal_eval(scopes) if str(name).startswith("module.")]
    layer = names[-1].removeprefix("module.") if names else ""
    return layer if not layer or layer.partition(".")[0] in COMPONENTS else f"{component}.{layer}"


def _rename_output(nodes: list[NodeProto], value: str, name: str) -> None:
    """The last node that was written makes what others know by `name`."""
    for node in nodes:
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == value:
                    names[place] = name
