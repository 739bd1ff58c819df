"""What a component has to read, compute and launch when it runs once, counted in its ONNX graph.

Weights are counted by the bytes they take in the bundle, so their precision is the graph's own.  Operations are those
of products with weights (MatMul and its quantized kin, Gemm, Conv); products of activations, which are attention, are
estimate.py's business because they grow with the context.  Where a product's rank is not known it is taken to see
every token.  Needs the onnx package; reads no weight, only their shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.onnx_file import ROUTED
from edgemm.errors import BundleError, MissingError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["GraphCosts", "read_graph_costs"]

PRODUCTS_A_LAYER = 7  # q, k, v, o, gate, up, down: the layer whose cost calibration.py knows
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "QLinearMatMul")
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose")
INT8_PRODUCTS = ("MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv")
LOOKUPS = ("Gather", "GatherBlockQuantized")  # read a few rows of their table
PASSED_ON = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity", "Reshape")  # a weight stays one


@dataclass(frozen=True)
class GraphCosts:
    """Multiplications count as two operations, with the addition that follows."""

    read_bytes: int  # weights of one run; a table that is only looked up is not read through
    stored_bytes: int  # on disk, tables and graph included
    operations_a_row: float  # of products that every token goes through
    operations_a_call: float  # of the others: convolutions, the output head, what the time goes through
    products: int
    int8: bool  # whether most operations multiply 8-bit integers with one another
    idle_bytes: int = 0  # of read_bytes, experts that one token does not go to; many tokens go to all

    @property
    def layers(self) -> float:
        """In layers of a language model, by the number of products with weights; nothing is launched for free."""
        return max(self.products, 1) / PRODUCTS_A_LAYER


def read_graph_costs(graph: Path, stored_bytes: int) -> GraphCosts:
    """`stored_bytes` is what the manifest says of the graph and its data file."""
    try:
        import onnx
        from onnx import shape_inference
    except ModuleNotFoundError as error:
        raise MissingError("counting a graph's operations needs the onnx package: pip install 'onnx>=1.21'") from error
    from google.protobuf.message import DecodeError  # comes with onnx

    try:
        model = onnx.load(str(graph), load_external_data=False)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BundleError(f"{graph}: not an ONNX graph: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{graph}: holds no operator, so nothing can be counted in it")
    return _count(shape_inference.infer_shapes(model, strict_mode=False), stored_bytes)


def _count(model: ModelProto, stored_bytes: int) -> GraphCosts:
    graph = model.graph
    weights = _weights(graph)
    shapes = _shapes(graph)
    outputs = {output.name for output in graph.output}
    a_row = a_call = in_int8 = 0.0
    products, idle = 0, 0
    for node in graph.node:
        macs = _multiplications(node, weights, shapes)
        if macs is None:
            continue
        products += 1
        idle += _idle_bytes(node, graph)
        once = node.op_type in CONVOLUTIONS or node.output[0] in outputs & {"logits"} or _rank(node, shapes) == 2
        a_row, a_call = (a_row, a_call + 2 * macs) if once else (a_row + 2 * macs, a_call)
        in_int8 += 2 * macs if node.op_type in INT8_PRODUCTS else 0
    return GraphCosts(
        read_bytes=max(stored_bytes - _looked_up_bytes(graph), 0),
        stored_bytes=stored_bytes,
        operations_a_row=a_row,
        operations_a_call=a_call,
        products=products,
        int8=2 * in_int8 > a_row + a_call,
        idle_bytes=idle,
    )


def _idle_bytes(node: NodeProto, graph: GraphProto) -> int:
    """Of an operator that chooses among experts: its weights, but for the share of one token's."""
    import onnx

    if node.op_type not in ROUTED:
        return 0
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    tensors = [sizes[name] for name in node.input if name in sizes]
    whole = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in tensors
    )
    return round(whole * (1 - _attribute(node, "k", 1) / tensors[0].dims[0])) if tensors else 0


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _weights(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of initializers, and of what is one in another form."""
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in PASSED_ON and node.input[0] in found:
            dims = found[node.input[0]]
            found[node.output[0]] = dims[::-1] if node.op_type == "Transpose" else dims
    return found


def _shapes(graph: GraphProto) -> dict[str, tuple[int | None, ...]]:
    """None stands for an axis whose size is not a number."""
    return {
        value.name: tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _multiplications(
    node: NodeProto, weights: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int | None, ...]]
) -> float | None:
    """Of one row through a product, or of one call of a convolution; None for any other node."""
    if node.op_type == "MatMulNBits":
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        return sizes["K"] * sizes["N"]
    if node.op_type in PRODUCTS:
        second = node.input[3 if node.op_type == "QLinearMatMul" else 1]
        return math.prod(weights[second]) if second in weights else None  # with several weights, by each of them
    if node.op_type in ROUTED:
        found = [weights[name] for name in node.input if len(weights.get(name, ())) == 3]
        packed = 2 if _attribute(node, "expert_weight_bits", 8) == 4 else 1
        return sum(map(math.prod, found)) * packed * _attribute(node, "k", 1) / found[0][0] if found else None
    if node.op_type in CONVOLUTIONS:
        kernel = weights.get(node.input[3 if node.op_type == "QLinearConv" else 1])
        side = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0], ())[2:]
        return math.prod(kernel) * math.prod(size or 1 for size in side) if kernel else None
    return None


def _rank(node: NodeProto, shapes: dict[str, tuple[int | None, ...]]) -> int | None:
    """Of what a product gives or takes: 2 has no axis of tokens.  None is not known, and taken for tokens."""
    for name in (node.output[0], node.input[0]):
        if name in shapes:
            return len(shapes[name])
    return None


def _looked_up_bytes(graph: GraphProto) -> int:
    """Tables (with their scales) that nothing but a lookup reads."""
    import onnx

    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    total = 0
    for tensor in graph.initializer:
        if len(tensor.dims) > 1 and users.get(tensor.name, set()) <= set(LOOKUPS):
            width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            total += math.prod(tensor.dims) * width
    return total
