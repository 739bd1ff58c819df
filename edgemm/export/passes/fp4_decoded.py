"""FP4 in operators that every runtime has, for those without a kernel for it: to compare with, never to use.

w = DequantizeLinear(codes, DequantizeLinear(scales, whole))            ->  one constant, by the rules of ONNX
DequantizeLinear(c, DequantizeLinear(s, whole)), c, s = TRT_FP4DynamicQuantize(x, whole)
                                                                        ->  x rounded in blocks of 16, in float32
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.export.graph_file import save_graph
from edgemm.export.passes.rewriting import attribute, replace_nodes

__all__ = ["decoded_copy", "fp4_decoded"]

TRT = "trt"
BLOCK, LARGEST = 16, 6.0  # of E2M1
SCALE_LARGEST, SCALE_SMALLEST = 448.0, 2.0**-9  # of E4M3


def decoded_copy(graph: Path, folder: Path) -> tuple[Path, Path | None]:
    """The graph without FP4, and the file that its weights are in, below `folder`."""
    model, copy = onnx.load(str(graph)), folder / graph.name
    fp4_decoded(model)
    return copy, save_graph(model, copy)


def fp4_decoded(model: ModelProto) -> bool:
    """Changes `model` itself; answers whether there was one."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    small = {name for name, tensor in weights.items() if tensor.data_type == TensorProto.FLOAT4E2M1}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        source = node.input[0] if node.op_type == "DequantizeLinear" else ""
        if source in small:
            model.graph.initializer.append(numpy_helper.from_array(_values(node, weights, makers), node.output[0]))
        elif source in makers and makers[source].domain == TRT and makers[source].output[0] == source:
            nodes += _rounded(model, node, makers[source])
        else:
            nodes.append(node)
    changed = len(nodes) != len(model.graph.node)
    replace_nodes(model, nodes)
    kept = [opset for opset in model.opset_import if opset.domain != TRT]
    del model.opset_import[len(kept) :]
    return changed


def _values(node: NodeProto, weights: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> np.ndarray:
    """What a DequantizeLinear makes of constants, or of what another makes of constants."""
    codes, scale = (
        numpy_helper.to_array(weights[name]) if name in weights else _values(makers[name], weights, makers)
        for name in node.input[:2]
    )
    block = attribute(node, "block_size", 0)
    spread = np.repeat(scale, block, axis=attribute(node, "axis", 1)) if block else scale
    return (codes.astype(np.float32) * spread.astype(np.float32)).astype(scale.dtype)


def _rounded(model: ModelProto, last: NodeProto, rounding: NodeProto) -> list[NodeProto]:
    """What `last` makes of x, in float32.  Steps of E2M1 are 0.5 up to 2, 1 up to 4, 2 up to 6, ties go to the even."""
    nodes: list[NodeProto] = []
    x, whole = rounding.input

    def make(op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{last.output[0]}/{len(nodes)}"
        nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(value: Any, dtype: Any = np.float32) -> str:
        name = f"{last.output[0]}/{len(model.graph.initializer)}/constant"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    blocks = make("Reshape", make("Cast", x, to=TensorProto.FLOAT), constant([-1, BLOCK], np.int64))
    largest = make("ReduceMax", make("Abs", blocks), constant([-1], np.int64))
    scale = make("Div", make("Div", largest, constant(LARGEST)), whole)
    scale = make("Clip", scale, constant(SCALE_SMALLEST), constant(SCALE_LARGEST))
    scale = make("Cast", make("Cast", scale, to=TensorProto.FLOAT8E4M3FN), to=TensorProto.FLOAT)
    each = make("Mul", scale, whole)
    ratio = make("Div", blocks, each)
    size = make("Min", make("Abs", ratio), constant(LARGEST))
    coarse = make("Where", make("Less", size, constant(4)), constant(1), constant(2))
    step = make("Where", make("Less", size, constant(2)), constant(0.5), coarse)
    nearest = make("Mul", make("Round", make("Div", size, step)), step)
    values = make("Mul", make("Mul", make("Sign", ratio), nearest), each)
    nodes.append(helper.make_node("Reshape", [values, make("Shape", x)], [last.output[0]], name=last.output[0]))
    return nodes
