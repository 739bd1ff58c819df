from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgemm.export.adapter_points import delta_to_residual
from tests.export.passes.one_op import random_inputs, rewritten, run


def layers(residual_last: bool = False) -> onnx.ModelProto:
    """r + (base + delta), as adapter_points.py names it; `residual_last`: r is made after that sum."""
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("x", "p/base", "delta", "y")]
    residual = helper.make_node("Neg", ["x"], ["r"], name="residual")
    adapted = helper.make_node("Add", ["p/base", "delta"], ["sum"], name="p/adapted")
    last = helper.make_node("Add", ["r", "sum"], ["y"], name="stream")
    nodes = [adapted, residual, last] if residual_last else [residual, adapted, last]
    graph = helper.make_graph(nodes, "g", sides[:3], sides[3:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def test_the_delta_is_added_to_the_stream_and_the_sum_is_the_same():
    model = layers()
    inputs = random_inputs(model)
    wanted = run(model, inputs)[0]
    assert rewritten(delta_to_residual, model)
    onnx.checker.check_model(model, full_check=True)
    adapted, last = model.graph.node[1:]
    assert (list(adapted.input), list(last.input)) == (["r", "delta"], ["sum", "p/base"])
    np.testing.assert_allclose(run(model, inputs)[0], wanted, atol=1e-6)
    assert not rewritten(delta_to_residual, model), "once is enough"


def test_what_comes_later_is_not_waited_for():
    model = ir.from_proto(layers(residual_last=True))
    before = ir.to_proto(model).SerializeToString()
    assert not delta_to_residual(model) and ir.to_proto(model).SerializeToString() == before
