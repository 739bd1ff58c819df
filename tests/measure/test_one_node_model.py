"""The hand-written model, read by the library that defines the format."""

from __future__ import annotations

import pytest

from edgemm.measure.one_node_model import SIDE, one_node_model

onnx = pytest.importorskip("onnx")


def test_onnx_accepts_the_hand_written_bytes():
    model = onnx.load_model_from_string(one_node_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    (given,) = model.graph.input
    assert [axis.dim_value for axis in given.type.tensor_type.shape.dim] == [SIDE, SIDE]
