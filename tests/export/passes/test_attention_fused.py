from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgemm.export.dialects import attention_fused
from edgemm.export.passes.rewriting import infer
from edgemm.export.trace import without_warnings
from edgemm.model.transformer import attend
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import ops, rewritten, run

pytestmark = needs_opset_24
SHAPES = {"q": (2, 4, 3, 8), "k": (2, 4, 5, 8), "v": (2, 4, 5, 8), "mask": (2, 1, 1, 5)}


class Attend(nn.Module):
    """Two layers over one mask, as the model writes them."""

    def forward(self, q, k, v, mask):
        return attend(q + attend(q, k, v, mask), k, v, mask)


def traced(heads=4, rows=1):
    shapes = {**SHAPES, "q": (2, heads, 3, 8), "mask": (2, 1, rows, 5)}
    example = tuple(torch.zeros(shape, dtype=torch.bool if name == "mask" else None) for name, shape in shapes.items())
    with without_warnings():
        program = torch.onnx.export(
            Attend(),
            example,
            input_names=list(shapes),
            output_names=["y"],
            opset_version=24,
            dynamo=True,
            verbose=False,
        )
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["mask"] = np.broadcast_to(np.arange(5) < np.array([5, 2]).reshape(2, 1, 1, 1), shapes["mask"])
    return model, inputs


@pytest.mark.parametrize("heads", [4, 8], ids=["equally many heads", "grouped heads"])
def test_the_models_own_attention_becomes_the_operator_and_says_the_same(heads):
    model, inputs = traced(heads)
    wanted = run(model, inputs)[0]
    assert rewritten(attention_fused, model)
    assert {"Attention", "Expand", "Add"} <= ops(model) <= {"Attention", "Expand", "Add", "Reshape"}
    assert [node.op_type for node in model.graph.node].count("Expand") == 1, "one mask for both layers"
    np.testing.assert_allclose(run(model, inputs)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("change", ["a mask a query", "another bias"])
def test_what_looks_otherwise_stays(change):
    model, _ = traced(rows=3 if change == "a mask a query" else 1)
    if change == "another bias":
        for tensor in model.graph.initializer:
            if onnx.numpy_helper.to_array(tensor).size == 1 and np.isneginf(onnx.numpy_helper.to_array(tensor)):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(-1, np.float32), tensor.name))
    inner = ir.from_proto(model)
    infer(inner)
    before = ir.to_proto(inner).SerializeToString()
    assert not attention_fused(inner)
    assert ir.to_proto(inner).SerializeToString() == before
