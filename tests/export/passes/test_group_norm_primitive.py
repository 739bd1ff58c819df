from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.export.passes.decompositions import group_norm_primitive
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops, rewritten, run

pytestmark = needs_opset_24

SCALE, BIAS = np.linspace(0.5, 2, 12), np.linspace(-1, 1, 12)


def model(dtype, shape, **attributes):
    weights = {"scale": SCALE.astype(dtype), "bias": BIAS.astype(dtype)}
    side = {"x": (dtype, shape)}
    return one_op("GroupNormalization", side, {"y": side["x"]}, weights, num_groups=4, **attributes)


def torchs(x: np.ndarray, epsilon: float) -> np.ndarray:
    weights = (torch.from_numpy(each.astype(np.float32)) for each in (SCALE, BIAS))
    return torch.nn.functional.group_norm(torch.from_numpy(x.astype(np.float32)), 4, *weights, epsilon).numpy()


@pytest.mark.parametrize("shape", [["b", 12, "h", "w"], [2, 12, 5, 3], ["b", 12, "n"]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (np.float16, 4e-3)])
def test_primitives_normalize_as_torch_does(shape, dtype, atol):
    normed = model(dtype, shape, epsilon=0.01)
    assert rewritten(group_norm_primitive, normed)
    assert "GroupNormalization" not in ops(normed)
    x = np.random.default_rng(0).standard_normal([2, 12, 5, 3][: len(shape)]).astype(dtype)
    np.testing.assert_allclose(run(normed, {"x": x})[0], torchs(x, 0.01), atol=atol)


def test_the_statistics_of_half_precision_are_taken_in_float32():
    """The squares of 400 do not fit into float16."""
    normed = model(np.float16, [1, 12, 2, 1])
    rewritten(group_norm_primitive, normed)
    x = np.full((1, 12, 2, 1), 400, np.float16)
    x[:, :, 1] = -400
    np.testing.assert_allclose(run(normed, {"x": x})[0], torchs(x, 1e-5), atol=4e-3)


def test_a_graph_without_it_is_left_alone():
    other = one_op("Relu", {"x": (np.float32, [3])}, {"y": (np.float32, [3])})
    before = other.SerializeToString()
    assert not rewritten(group_norm_primitive, other)
    assert other.SerializeToString() == before
