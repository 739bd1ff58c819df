"""Heads of 12 become heads of 16 for NVIDIA's compiler, and say what they said."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgemm.export.passes.padded_heads import padded_heads
from tests.engines.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import run

pytestmark = needs_opset_24


def attention(width: int, value_width: int, dtype=TensorProto.FLOAT, **attributes):
    """Two query heads a key head."""
    shapes = {"q": (2, 4, 3, width), "k": (2, 2, 5, width), "v": (2, 2, 5, value_width)}
    given = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]
    given.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, (2, 1, 3, 5)))
    out = helper.make_tensor_value_info("y", dtype, (2, 4, 3, value_width))
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], **attributes)
    graph = helper.make_graph([node], "one", given, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return model, inputs | {"mask": random.random((2, 1, 3, 5)) > 0.3}


@pytest.mark.parametrize("value_width", [12, 16])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.5}])
def test_padding_changes_no_answer(value_width, attributes):
    model, inputs = attention(12, value_width, **attributes)
    rewritten = ir.from_proto(model)
    assert padded_heads(rewritten)
    kinds = [node.op_type for node in rewritten.graph]
    assert kinds.count("Pad") == (3 if value_width == 12 else 2)
    (wanted,), (found,) = run(model, inputs), run(ir.to_proto(rewritten), inputs)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_heads_that_the_compiler_knows_stay():
    model = ir.from_proto(attention(16, 16)[0])
    assert not padded_heads(model)
    assert [node.op_type for node in model.graph] == ["Attention"]


@needs_rtx
@pytest.mark.parametrize("width", [12, 20, 100])
def test_the_builder_takes_them_so(width):
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)

    def engine(model: ir.Model):
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse(ir.to_proto(model).SerializeToString())
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return builder.build_serialized_network(network, config)

    model = ir.from_proto(attention(width, width, TensorProto.FLOAT16)[0])
    padded_heads(model)
    assert engine(model) is not None
