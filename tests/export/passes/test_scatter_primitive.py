from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import scatter_primitive
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run

pytestmark = needs_opset_24


def model(**attributes):
    cache, update = (np.float32, ["b", 2, "T", 4]), (np.float32, ["b", 2, "s", 4])
    inputs = {"cache": cache, "update": update, "write_index": (np.int64, ["b"])}
    return one_op("TensorScatter", inputs, {"y": cache}, **{"axis": 2, "mode": "linear", **attributes})


def test_new_keys_come_to_the_slots_that_the_operator_gives_them():
    writing = model()
    inputs = random_inputs(writing) | {"write_index": np.array([0, 5])}
    wanted = run(writing, inputs)[0]
    assert rewritten(scatter_primitive, writing)
    assert "TensorScatter" not in ops(writing)
    found = run(writing, inputs)[0]
    np.testing.assert_array_equal(found, wanted)
    assert (found != inputs["cache"]).any(axis=(1, 3)).sum(axis=1).tolist() == [3, 3], "only what was written changed"


@pytest.mark.parametrize("attributes", [{"mode": "circular"}, {"axis": 1}])
def test_another_form_is_refused_by_name(attributes):
    with pytest.raises(ValueError, match="tensorscatter"):
        rewritten(scatter_primitive, model(**attributes))
