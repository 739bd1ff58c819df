"""Products with weights in a traced graph, by the layer that they come from, and how to put other nodes there.

What the other nodes are is each lowering's own: lower_*.py.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgemm.bundle.components import COMPONENTS
from edgemm.export.passes.rewriting import Writer, dims, drop_unread, stored
from edgemm.quantize.spec import HEAD, Spec

__all__ = ["SCOPES", "Product", "Table", "products_of", "rewrite_products", "tables_of", "write_beside"]

PRODUCTS = ("MatMul", "Gemm")
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm of an activation with a constant, or the embedding's Gather."""

    node: ir.Node
    layer: str  # torch's name: transformer.layers.3.mlp.down_proj
    stored: ir.Value  # the constant
    across: bool = False  # it lies (n, k), not [k, n]

    @property
    def is_lookup(self) -> bool:
        return self.node.op_type == "Gather"

    @property
    def x(self) -> ir.Value:
        """The activation, or the ids that are looked up; asked for when it is wanted, for what makes it may change."""
        value = self.node.inputs[1 if self.is_lookup else 0]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def dtype(self) -> ir.DataType:
        """FLOAT or FLOAT16, of the weight."""
        assert self.stored.dtype is not None
        return self.stored.dtype

    def weight(self) -> np.ndarray:
        """(n, k)."""
        array = stored(self.stored)
        assert array is not None
        return array if self.across else array.T


@dataclass(frozen=True)
class Table:
    """A constant that is no product's, but may be stored small: a filter of one pixel, letters of visual words."""

    layer: str
    stored: ir.Value

    def weight(self) -> np.ndarray:
        """(n, k)."""
        array = stored(self.stored)
        assert array is not None
        return array.reshape(len(array), -1)


def rewrite_products(
    model: ir.Model, write: Callable[[Writer, Product], ir.Value | None], component: str = "transformer"
) -> None:
    """In `model` itself: `write` answers with the value that stands for the product (bias included), None to leave it.

    Weights that nobody reads any more are dropped.
    """
    writer = Writer(model)
    for product in list(products_of(model, component)):
        writer.place = product.node
        value = write(writer, product)
        if value is not None:
            writer.replace(product.node, value)
    drop_unread(model)


def write_beside(writer: Writer, product: Product, spec: Spec, y: ir.Value) -> ir.Value:
    """The product y with what is added to it: the spec's low-rank branch, and its bias."""
    branch = spec.low_rank(product.layer)
    if branch:
        down, up = (
            writer.constant(array.T, product.dtype.numpy(), name=f"{product.layer}.{side}")
            for side, array in zip(("down", "up"), branch)
        )
        y = writer.make("Add", y, writer.make("MatMul", writer.make("MatMul", product.x, down), up))
    return writer.make("Add", y, product.bias) if product.bias is not None else y


def products_of(model: ir.Model, component: str) -> Iterator[Product]:
    """In the graph's order; a layer whose name does not begin with a component's gets this one's."""
    for number, node in enumerate(model.graph):
        if node.op_type == "Gather":
            table, ids = node.inputs
            if table and ids and table.is_initializer() and _is_embedding(table, ids):
                yield Product(node, HEAD, table, True)
        elif node.op_type in PRODUCTS:
            weight = node.inputs[1]
            turned = weight.producer() if weight is not None else None
            is_turned = turned is not None and turned.op_type == "Transpose"
            weight = turned.inputs[0] if turned is not None and is_turned else weight
            if weight is None or not weight.is_initializer() or len(dims(weight)) != 2:
                continue
            across = bool(node.attributes.get_int("transB", 0)) != is_turned
            layer = _layer_of(node, weight.name or "", component) or f"{component}.product_{number}"
            yield Product(node, layer, weight, across)


def tables_of(model: ir.Model, component: str) -> Iterator[Table]:
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "GatherND" else node.inputs[1] if node.op_type == "Conv" else None
        if value is None or not value.is_initializer() or value.dtype != ir.DataType.FLOAT:
            continue
        if node.op_type == "GatherND":
            yield Table(f"{component}.words.letters", value)
        elif all(size == 1 for size in dims(value)[2:]) and node.attributes.get_int("group", 1) == 1:
            name = (value.name or "").removeprefix("module.").removesuffix(".weight")
            yield Table(f"{component}.{name}", value)


def _is_embedding(table: ir.Value, ids: ir.Value) -> bool:
    """Where the head is tied the table may go by the head's name."""
    return "embed_tokens.weight" in (table.name or "") or ids.name == "input_ids"


def _layer_of(node: ir.Node, weight: str, component: str) -> str:
    if "embed_tokens.weight" in weight:
        return HEAD
    scopes = node.metadata_props.get(SCOPES, "[]")
    names: Sequence[str] = [name for name in ast.literal_eval(scopes) if str(name).startswith("module.")]
    layer = names[-1].removeprefix("module.") if names else ""
    return layer if not layer or layer.partition(".")[0] in COMPONENTS else f"{component}.{layer}"
