"""The hand-written model, read by the library that defines the format."""

from __future__ import annotations

import pytest

from edgemm.device.providers import SIDE, one_integer_node_model, one_node_model

onnx = pytest.importorskip("onnx")


def test_onnx_accepts_the_hand_written_bytes():
    model = onnx.load_model_from_string(one_node_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    (given,) = model.graph.input
    assert [axis.dim_value for axis in given.type.tensor_type.shape.dim] == [SIDE, SIDE]


def test_the_integer_product_is_numpys():
    import numpy as np

    ort = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(onnx.load_model_from_string(one_integer_node_model(8)), full_check=True)
    x = np.arange(64, dtype=np.uint8).reshape(8, 8)
    w = (np.arange(64) - 32).astype(np.int8).reshape(8, 8)
    session = ort.InferenceSession(one_integer_node_model(8), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x, "w": w})[0], x.astype(int) @ w.astype(int))
