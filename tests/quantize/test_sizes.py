"""The bytes that a spec tells are those of the graph that is written from it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.quantize.make import make_spec
from edgemm.quantize.spec import Layer
from edgemm.search.levels import size_bytes

LAYER = "transformer.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "layer",
    [
        Layer(8, 32, activations="block"),
        Layer(8, 128, symmetric=False, activations="block"),
        Layer(4, 32, symmetric=False, activations="block"),
        Layer(4, 64, activations="float"),
        Layer(8, activations="token"),
    ],
)
def test_bytes_told_are_bytes_written(layer):
    weight = torch.randn(48, 384, generator=torch.Generator().manual_seed(0))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', 'module.{LAYER}']")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["r", n]) for name, n in (("x", 384), ("y", 48)))
    graph = helper.make_graph(
        [node], "one", [x], [y], [numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    spec = make_spec({LAYER: weight}, {LAYER: layer})
    lowered, _ = lower_ort_cpu("transformer", ir.from_proto(model), spec)
    written = sum(len(t.raw_data) for t in ir.to_proto(lowered).graph.initializer if len(t.dims))
    assert written == pytest.approx(size_bytes(spec), abs=32)  # a shape or two
