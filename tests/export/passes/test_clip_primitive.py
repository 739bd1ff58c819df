from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import clip_primitive
from tests.export.passes.one_op import one_op, ops, rewritten, run


@pytest.mark.parametrize("limits", [{"low": -1}, {"low": -1, "high": 2}])
def test_whole_numbers_are_bounded_alike(limits):
    side = {"x": (np.int64, [5])}
    weights = {name: np.array(limit, np.int64) for name, limit in limits.items()}
    clipped = one_op("Clip", side, {"y": side["x"]}, weights, opset=21)
    inputs = {"x": np.arange(-2, 3)}
    wanted = run(clipped, inputs)[0]
    assert rewritten(clip_primitive, clipped)
    assert "Clip" not in ops(clipped)
    np.testing.assert_array_equal(run(clipped, inputs)[0], wanted)


def test_a_clip_of_floats_stays():
    side = {"x": (np.float32, [5])}
    clipped = one_op("Clip", side, {"y": side["x"]}, {"low": np.array(0, np.float32)}, opset=21)
    assert not rewritten(clip_primitive, clipped)
    assert ops(clipped) == {"Clip"}
