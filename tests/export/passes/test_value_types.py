"""Types and shapes of values in a graph, also where onnx itself infers none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.passes.rewriting import dims, infer


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_what_follows_a_group_norm_has_a_type_and_a_shape(dtype):
    """Decoders of pictures are full of them."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    sides = [helper.make_tensor_value_info(name, dtype, ["b", 8, 4, 4]) for name in ("x", "z")]
    weights = [numpy_helper.from_array(np.ones(8, kind), name) for name in ("scale", "bias")]
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2, epsilon=1e-6),
        helper.make_node("Sigmoid", ["y"], ["s"]),
        helper.make_node("Mul", ["y", "s"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "norm", sides[:1], sides[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    inner = ir.from_proto(model)
    infer(inner)
    values = ir.convenience.create_value_mapping(inner.graph)
    assert {values[name].dtype for name in ("x", "y", "s", "z")} == {dtype}
    assert dims(values["s"]) == ("b", 8, 4, 4)
    assert inner.graph[0].op_type == "GroupNormalization"
