"""A bias joins the residual stream before the product does, and the sum stays the sum."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.passes.bias_to_residual import bias_to_residual
from tests.export.passes.one_op import ops, rewritten, run


def layer(turned: bool, read_twice: bool = False):
    random = np.random.default_rng(0)
    weights = {"w": (4, 6), "b": (6,)}
    stored = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["b", "product"] if turned else ["product", "b"], ["inner"]),
        helper.make_node("Add", ["inner", "r"] if turned else ["r", "inner"], ["y"], name="outer"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 6])]
    if read_twice:
        nodes.append(helper.make_node("Neg", ["inner"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3, 6]))
    shapes = {"x": (2, 3, 4), "r": (2, 3, 6)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "one", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("turned", [False, True])
def test_the_sum_is_the_same(turned):
    model, inputs = layer(turned)
    (before,) = run(model, inputs)
    assert rewritten(bias_to_residual, model)
    nodes = {output: node for node in model.graph.node for output in node.output}
    inner = next(name for name in nodes["y"].input if name != "product")
    assert "product" in nodes["y"].input and set(nodes[inner].input) == {"r", "b"}
    np.testing.assert_allclose(run(model, inputs)[0], before, rtol=1e-6, atol=1e-6)


def test_a_sum_that_others_read_stays():
    model, _ = layer(False, read_twice=True)
    before = ops(model)
    assert not rewritten(bias_to_residual, model)
    assert ops(model) == before
