"""NVIDIA's rounding to FP4 in operators that ONNX Runtime has, number for number as our half in torch rounds."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.lower_tensorrt import DYNAMIC_FP4, TRT
from edgemm.export.passes.decompositions import fp4_decoded
from edgemm.quantize.simulated import rounded
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import rewritten

pytestmark = needs_opset_24

LARGEST = 5.0  # as calibration saw it; the inputs below go beyond


def test_inputs_are_rounded_alike():
    nodes = [
        helper.make_node(
            DYNAMIC_FP4, ["x", "whole"], ["codes", "scales"], domain=TRT, axis=-1, block_size=16, scale_type=17
        ),
        helper.make_node("DequantizeLinear", ["scales", "whole"], ["each"]),
        helper.make_node("DequantizeLinear", ["codes", "each"], ["y"], axis=-1, block_size=16),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", 64]) for name in ("x", "y")]
    whole = numpy_helper.from_array(np.float32(LARGEST / 6 / 448), "whole")
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(TRT, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "rounding", sides[:1], sides[1:], [whole]), opset_imports=opsets, ir_version=11
    )
    assert rewritten(fp4_decoded, model) and [opset.domain for opset in model.opset_import] == [""]
    onnx.checker.check_model(model)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 64, generator=random) * torch.logspace(-4, 0.5, 10).view(2, 5, 1)
    x[0, 0] = 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": x.numpy()})
    np.testing.assert_allclose(found, rounded(x, "nvfp4", torch.tensor(LARGEST)), rtol=1e-6, atol=0)
    assert len(np.unique(np.abs(found[1, 4, :16]))) <= 8
