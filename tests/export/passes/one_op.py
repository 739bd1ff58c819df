"""Graphs of one operator, run by ONNX Runtime: what a pass makes of it has to give the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import ModelProto, helper

__all__ = ["one_op", "ops", "random_inputs", "rewritten", "run"]

AXES = {"b": 2, "s": 3, "T": 8}


def one_op(op_type, inputs, outputs, weights=None, opset=24, **attributes) -> ModelProto:
    """`inputs` and `outputs` are name -> (numpy type, shape); named axes are those of AXES."""

    def values(side):
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in side.items()
        ]

    constants = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    node = helper.make_node(op_type, [*inputs, *(weights or {})], list(outputs), name=op_type.lower(), **attributes)
    graph = helper.make_graph([node], "one", values(inputs), values(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def rewritten(rewrite: Callable[..., Any], model: ModelProto, *words: Any, **named: Any) -> Any:
    """The pass over `model` itself, and what it answers."""
    inner = ir.from_proto(model)
    answer = rewrite(inner, *words, **named)
    model.CopyFrom(ir.to_proto(inner))
    return answer


def random_inputs(model: ModelProto) -> dict[str, np.ndarray]:
    random, found = np.random.default_rng(0), {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [AXES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        numbers = random.standard_normal(shape)
        found[value.name] = numbers > -0.5 if dtype == np.dtype(bool) else (3 * numbers).astype(dtype)
    return found


def run(model: ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, inputs)]


def ops(model: ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}
