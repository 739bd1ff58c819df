from __future__ import annotations

import numpy as np

from edgemm.export.lower_cuda import fixed_axes
from tests.export.passes.one_op import one_op, rewritten


def test_named_axes_get_their_size_and_others_keep_their_name():
    side = {"x": (np.float32, ["b", 2, "T", 4])}
    model = one_op("Relu", side, {"y": side["x"]})
    assert rewritten(fixed_axes, model, {"T": 64})
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["b", 2, 64, 4]
    assert not rewritten(fixed_axes, model, {"T": 64})
