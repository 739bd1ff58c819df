from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import gelu_primitive
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_primitives_bend_as_the_operator_does(approximate):
    bent = one_op(
        "Gelu", {"x": (np.float32, ["b", 64])}, {"y": (np.float32, ["b", 64])}, opset=21, approximate=approximate
    )
    inputs = random_inputs(bent)
    wanted = run(bent, inputs)[0]
    assert rewritten(gelu_primitive, bent)
    assert "Gelu" not in ops(bent)
    np.testing.assert_allclose(run(bent, inputs)[0], wanted, atol=2e-6)
