from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.passes.decompositions import attention_primitive
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops, random_inputs, rewritten, run

pytestmark = needs_opset_24


def model(dtype=np.float32, heads=6, groups=2, masked=True, **attributes):
    queries, cache = (dtype, ["b", heads, "s", 8]), (dtype, ["b", groups, "T", 8])
    mask = {"mask": (bool, ["b", 1, "s", "T"])} if masked else {}
    return one_op("Attention", {"q": queries, "k": cache, "v": cache, **mask}, {"y": queries}, **attributes)


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)], ids=["grouped", "plain", "one group"])
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-5), (np.float16, 2e-2)])
def test_primitives_attend_as_the_operator_does(dtype, atol, heads, groups):
    attending = model(dtype, heads, groups)
    inputs = random_inputs(attending)
    inputs["mask"][..., 0] = True  # a query that sees nothing has no answer
    wanted = run(attending, inputs)[0]
    assert rewritten(attention_primitive, attending)
    assert "Attention" not in ops(attending)
    np.testing.assert_allclose(run(attending, inputs)[0], wanted, atol=atol)


def test_a_scale_of_its_own_and_no_mask():
    attending = model(masked=False, scale=0.7)
    inputs = random_inputs(attending)
    wanted = run(attending, inputs)[0]
    rewritten(attention_primitive, attending)
    np.testing.assert_allclose(run(attending, inputs)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 5.0}])
def test_another_form_is_refused_by_name(attributes):
    with pytest.raises(ValueError, match="attention"):
        rewritten(attention_primitive, model(**attributes))
