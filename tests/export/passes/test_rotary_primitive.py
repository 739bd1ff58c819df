from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import rotary_primitive
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run

pytestmark = needs_opset_24


def model(dtype=np.float32, **attributes):
    table = (dtype, ["b", "s", 4])
    x = (dtype, ["b", 2, "s", 8])
    return one_op("RotaryEmbedding", {"x": x, "cos": table, "sin": table}, {"y": x}, **attributes)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (np.float16, 5e-2)])
def test_primitives_turn_as_the_operator_does(dtype, atol):
    rotated = model(dtype)
    inputs = random_inputs(rotated)
    wanted = run(rotated, inputs)[0]
    assert rewritten(rotary_primitive, rotated)
    assert ops(rotated) == {"Unsqueeze", "Split", "Mul", "Sub", "Add", "Concat"}
    np.testing.assert_allclose(run(rotated, inputs)[0], wanted, atol=atol)


@pytest.mark.parametrize("attributes", [{"interleaved": 1}, {"rotary_embedding_dim": 4}])
def test_another_form_is_refused_by_name(attributes):
    with pytest.raises(ValueError, match="rotaryembedding"):
        rewritten(rotary_primitive, model(**attributes))
