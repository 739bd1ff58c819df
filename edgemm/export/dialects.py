"""Dialects: which operators a graph may use, and the passes that get it there from the reference graph.

`standard-24` is the reference, with the denoiser's attention as one operator too: opset 24 with Attention,
RotaryEmbedding, RMSNormalization and TensorScatter, for TensorRT 10.15 and newer, TensorRT for RTX, and ONNX Runtime
1.32.  `portable-21` writes those as primitives, of opset 21 where weights have four bits and of 20 elsewhere, for
TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.23.
Precision is decided before: passes keep the types that they meet.
Axes: b batch, h heads, q queries, k keys, d head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edgemm.export.passes.bias_to_residual import bias_to_residual
from edgemm.export.passes.decompositions import (
    attention_primitive,
    clip_primitive,
    cumsum_primitive,
    gelu_primitive,
    group_norm_primitive,
    mod_primitive,
    rms_norm_primitive,
    rotary_primitive,
    scatter_primitive,
)
from edgemm.export.passes.padded_heads import padded_heads
from edgemm.export.passes.rewriting import Writer, dims, drop_unread, infer, made_by, nodes_of, stored

__all__ = ["DIALECTS", "attention_fused", "in_dialect", "older_opset", "say_promised_opset"]

SHAPING = ("Reshape", "Unsqueeze")


@dataclass(frozen=True)
class Found:
    last: ir.Node  # the product with the values
    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    mask: ir.Value  # bool (b, 1, 1, k)
    scale: float


def attention_fused(model: ir.Model) -> bool:
    """Attention written out, as the denoiser's is (edgemm/model/transformer.py), back as one Attention (opset 23).

    Engines have kernels for the operator; for its parts they may or may not find one.  What is looked for, backwards
    from a Softmax, for a mask that is the same for every query (query heads may have been folded into the query axis):

        MatMul(Softmax(Reshape?(Reshape?(MatMul(Mul(q, scale), Transpose(k))) + bias)), v)
        bias = Unsqueeze?(Where(Not(mask), -inf, 0))

    What looks otherwise stays as it is.
    """
    infer(model)
    matches = [found for node in nodes_of(model, "Softmax") if (found := _match(node))]
    writer = Writer(model)
    for found in matches:
        writer.place = found.last
        rows = writer.constant([1, 1, dims(found.queries)[2], 1])
        mask = writer.make("Expand", found.mask, rows)  # with a row a query
        attended = writer.make("Attention", found.queries, found.keys, found.values, mask, scale=found.scale)
        writer.replace(found.last, attended)
    if matches:
        drop_unread(model)
    return bool(matches)


def _match(softmax: ir.Node) -> Found | None:
    add = _behind(softmax.inputs[0], "Add")
    readers = [use.node for use in softmax.outputs[0].uses()]
    if add is None or len(readers) != 1 or readers[0].op_type != "MatMul":
        return None
    product, bias = _behind(add.inputs[0], "MatMul"), _behind(add.inputs[1], "Where")
    if product is None or bias is None:
        return None
    scaled, turned = made_by(product.inputs[0], "Mul"), made_by(product.inputs[1], "Transpose")
    negated = made_by(bias.inputs[0], "Not")
    if not (scaled and turned and negated):
        return None
    queries, keys, values, mask = scaled.inputs[0], turned.inputs[0], readers[0].inputs[1], negated.inputs[0]
    scale, hidden = _number(scaled.inputs[1]), _number(bias.inputs[1])
    straight = turned.attributes.get_ints("perm", ()) == (0, 1, 3, 2) and len(dims(queries)) == 4
    same_heads = dims(queries)[1:2] == dims(keys)[1:2]
    one_row = len(dims(mask)) == 4 and dims(mask)[1:3] == (1, 1)
    if not (hidden == -np.inf and straight and same_heads and one_row and scale is not None):
        return None
    if not (queries and keys and values and mask and isinstance(dims(queries)[2], int)):
        return None
    return Found(readers[0], queries, keys, values, mask, scale)


def _behind(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, looking through what only changes its shape."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in SHAPING:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == op_type else None


def _number(value: ir.Value | None) -> float | None:
    array = stored(value)
    return float(array) if array is not None and array.ndim == 0 else None


Pass = Callable[[ir.Model], bool]  # changes the model it is given; answers whether it did

DIALECTS: dict[str, tuple[Pass, ...]] = {
    "standard-24": (attention_fused, padded_heads, bias_to_residual, lambda model: older_opset(model, 24)),
    "portable-21": (
        scatter_primitive,
        attention_primitive,
        rotary_primitive,
        rms_norm_primitive,
        group_norm_primitive,
        gelu_primitive,
        clip_primitive,
        mod_primitive,
        cumsum_primitive,
        lambda model: older_opset(model, 21),
    ),
}
FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)  # came, like blocks of scales, with opset 21
IR_VERSIONS = {20: 9, 21: 10, 24: 13}  # that came with the opset: older runtimes refuse newer ones


def in_dialect(model: ir.Model, dialect: str) -> ir.Model:
    """A copy of the model in the dialect; ValueError names the node that cannot be said in it."""
    copy = model.clone()
    for rewrite in DIALECTS[dialect]:
        rewrite(copy)
    return copy


def say_promised_opset(model: ir.Model) -> None:
    """20 instead of 21 in a whole graph, where no weight has four bits.

    TensorRT 10.3's table of operators promises opsets 9 to 20, and INT4, which ONNX has from 21 on.  Its parser
    (onnx-tensorrt, ModelImporter.cpp) warns of opsets below 7 and has no upper limit, so 21 is read where it has to be.
    """
    four_bits = any(value.dtype in FOUR_BITS for value in model.graph.initializers.values())
    if model.opset_imports.get("") == 21 and not four_bits:
        with contextlib.suppress(ValueError):  # something else of 21 is in it
            older_opset(model, 20)


def older_opset(model: ir.Model, opset: int) -> bool:
    """Says that a graph of newer opset is one of an older opset, after proving that every node of it is.

    A node whose operator is newer, or that has an attribute which the older one lacks, is named in the ValueError: the
    passes that write it in older operators come before.
    """
    if set(model.opset_imports) != {""} or model.functions:
        raise ValueError("the graph has operators of other domains or functions of its own")
    given = model.opset_imports[""]
    if given < opset:
        raise ValueError(f"the graph is of opset {given}, older than {opset} already")
    for node in model.graph:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(f"{node.name}: {node.op_type} is newer than opset {opset}") from error
        unknown = [name for name in node.attributes if name not in schema.attributes]
        if unknown:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} has no attribute {unknown[0]!r}")
        if not schema.min_input <= len(node.inputs) <= schema.max_input:
            raise ValueError(f"{node.name}: {node.op_type} of opset {opset} does not take {len(node.inputs)} inputs")
    model.opset_imports[""] = opset
    assert model.ir_version is not None
    model.ir_version = min(model.ir_version, IR_VERSIONS[opset])
    return given != opset
