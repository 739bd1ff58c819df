"""What TensorRT 10.3 does not document for whole numbers, in operators that it has."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import cumsum_primitive, mod_primitive
from tests.export.passes.one_op import one_op, ops, rewritten, run


def test_the_rest_of_a_division_has_the_divisors_sign():
    side = {"x": (np.int64, [7])}
    model = one_op("Mod", side, {"y": side["x"]}, {"by": np.array(3, np.int64)}, opset=21)
    inputs = {"x": np.arange(-3, 4)}
    wanted = run(model, inputs)[0]
    assert rewritten(mod_primitive, model) and "Mod" not in ops(model)
    np.testing.assert_array_equal(run(model, inputs)[0], wanted)


def test_a_running_count_is_exact():
    side = {"x": (np.int64, ["b", "s"])}
    model = one_op("CumSum", side, {"y": side["x"]}, {"axis": np.array(1, np.int64)}, opset=21)
    inputs = {"x": np.random.default_rng(0).integers(0, 2, (2, 300)) * 1000}
    wanted = run(model, inputs)[0]
    assert rewritten(cumsum_primitive, model) and "CumSum" not in ops(model)
    np.testing.assert_array_equal(run(model, inputs)[0], wanted)


def test_other_forms_are_named():
    side = {"x": (np.float32, [7])}
    with pytest.raises(ValueError, match="Mod of other than whole numbers"):
        rewritten(mod_primitive, one_op("Mod", side, {"y": side["x"]}, {"by": np.array(3, np.float32)}, 21, fmod=1))
    side = {"x": (np.int64, ["b", "s"])}
    model = one_op("CumSum", side, {"y": side["x"]}, {"axis": np.array(1, np.int64)}, 21, reverse=1)
    with pytest.raises(ValueError, match="CumSum of other than rows"):
        rewritten(cumsum_primitive, model)
