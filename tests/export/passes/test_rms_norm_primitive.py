from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgemm.export.passes.decompositions import rms_norm_primitive
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run

pytestmark = needs_opset_24


def model(dtype, **attributes):
    weight = np.linspace(0.5, 2, 16).astype(dtype)
    side = {"x": (dtype, ["b", "s", 16])}
    return one_op("RMSNormalization", side, {"y": side["x"]}, {"weight": weight}, axis=-1, **attributes)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (np.float16, 4e-3)])
def test_primitives_normalize_as_the_operator_does(dtype, atol):
    normed = model(dtype, epsilon=0.01)
    inputs = random_inputs(normed)
    wanted = run(normed, inputs)[0]
    assert rewritten(rms_norm_primitive, normed)
    assert "RMSNormalization" not in ops(normed)
    np.testing.assert_allclose(run(normed, inputs)[0], wanted, atol=atol)


def test_the_statistics_of_half_precision_are_taken_in_float32():
    """The squares of 400 do not fit into float16."""
    normed = model(np.float16)
    rewritten(rms_norm_primitive, normed)
    x = np.full((1, 1, 16), 400, np.float16)
    np.testing.assert_allclose(run(normed, {"x": x})[0][0, 0], np.linspace(0.5, 2, 16), rtol=2e-3)


def test_a_graph_without_it_is_left_alone():
    other = one_op("Relu", {"x": (np.float32, [3])}, {"y": (np.float32, [3])})
    inner = ir.from_proto(other)
    before = ir.to_proto(inner).SerializeToString()
    assert not rms_norm_primitive(inner)
    assert ir.to_proto(inner).SerializeToString() == before
