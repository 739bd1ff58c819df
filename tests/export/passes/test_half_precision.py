from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.export.lower_cuda import half_precision
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run

WEIGHT = (np.random.default_rng(1).standard_normal((4, 4)) / 2).astype(np.float32)


def nothing(name: str) -> bool:
    return False


def angles():
    """cos(1000 x) W: the angle needs float32, the product does not."""
    nodes = [
        helper.make_node("Mul", ["x", "thousand"], ["angle"], name="mul"),
        helper.make_node("Cos", ["angle"], ["cos"], name="cos"),
        helper.make_node("MatMul", ["cos", "weight"], ["y"], name="matmul"),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("x", "y")]
    weights = {"thousand": np.array(1000, np.float32), "weight": WEIGHT}
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "angles", sides[:1], sides[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_angles_keep_float32_and_products_do_not():
    model = angles()
    x = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    wanted = run(model, {"x": x})[0]
    rewritten(half_precision, model, nothing)
    np.testing.assert_allclose(run(model, {"x": x})[0], wanted, atol=5e-3)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types == {TensorProto.FLOAT, TensorProto.FLOAT16}, "the weight is stored in half, the factor is not"
    half_angle = np.cos((1000 * x.astype(np.float16)).astype(np.float32)) @ WEIGHT
    assert np.abs(half_angle - wanted).max() > 0.1, "this input would not have told"


def test_edges_are_float32_unless_they_are_named():
    model = angles()
    rewritten(half_precision, model, lambda name: name == "y")
    kinds = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16]
    assert run(model, {"x": np.zeros((1, 4), np.float32)})[0].dtype == np.float16


def test_an_island_keeps_all_that_leads_to_it():
    model = angles()
    rewritten(half_precision, model, nothing, island=lambda node: node.op_type == "MatMul")
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer)
    assert not [node for node in model.graph.node if node.op_type == "Cast"]


def test_a_weight_that_does_not_fit_is_named():
    side = {"x": (np.float32, ["b", 4])}
    model = one_op("MatMul", side, {"y": side["x"]}, {"wide": 1e6 * WEIGHT})
    with pytest.raises(ValueError, match="'wide' holds"):
        rewritten(half_precision, model, nothing)


def test_a_mask_of_minus_infinity_fits():
    side = {"x": (np.float32, ["b", 4])}
    model = one_op("Add", side, {"y": side["x"]}, {"bias": np.array([0, -np.inf, 0, 0], np.float32)})
    rewritten(half_precision, model, nothing)
    assert run(model, {"x": np.ones((1, 4), np.float32)})[0][0, 1] == -np.inf


def test_a_graph_with_half_in_it_is_refused():
    model = angles()
    rewritten(half_precision, model, nothing)
    with pytest.raises(ValueError, match="float32 alone"):
        rewritten(half_precision, model, nothing)


def test_the_scales_of_a_resize_stay_float32_for_it_knows_no_other():
    weights = {"roi": np.array([], np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    sides = [{name: (np.float32, (1, 2, side, side))} for name, side in (("x", 3), ("y", 6))]
    model = one_op("Resize", *sides, weights)
    x = random_inputs(model)
    wanted = run(model, x)[0]
    rewritten(half_precision, model, nothing)
    np.testing.assert_allclose(run(model, x)[0], wanted, atol=5e-3)
    assert {"Resize", "Cast"} == ops(model)
