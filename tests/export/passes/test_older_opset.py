from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgemm.export.dialects import older_opset
from tests.export.passes.one_op import one_op, rewritten, run

SIDE = {"x": (np.float32, [4])}


def test_a_graph_of_old_operators_becomes_old():
    model = one_op("Relu", SIDE, {"y": SIDE["x"]})
    assert rewritten(older_opset, model, 21)
    assert model.opset_import[0].version == 21
    np.testing.assert_array_equal(run(model, {"x": np.array([-1, 0, 1, 2], np.float32)})[0], [0, 0, 1, 2])


def test_a_newer_operator_is_named():
    model = one_op("RMSNormalization", SIDE, {"y": SIDE["x"]}, {"w": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match="rmsnormalization: RMSNormalization is newer than opset 21"):
        rewritten(older_opset, model, 21)
    assert model.opset_import[0].version == 24


def test_a_newer_attribute_is_named():
    model = one_op("Cast", SIDE, {"y": (np.float16, [4])}, to=10, round_mode="up")
    with pytest.raises(ValueError, match="'round_mode'"):
        rewritten(older_opset, model, 21)


def test_another_domain_is_refused():
    model = one_op("Relu", SIDE, {"y": SIDE["x"]})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ValueError, match="other domains"):
        rewritten(older_opset, model, 21)
