"""OpenVINO reads what the CPU lowering writes, ONNX Runtime's own operators too, and answers as ONNX Runtime does."""

from __future__ import annotations

import numpy as np
import pytest

import edgemm
from tests.export.nano import PRECISIONS, needs_opset_24

pytestmark = needs_opset_24
pytest.importorskip("openvino")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_answers_alike_on_openvino(bundles, runtimes, precision):
    """Logits may differ by rounding, so the first tokens are held and not a whole reply.

    Both round the inputs of block-quantized products to 8 bits, each in groups of its own: on these random
    weights as far apart as ONNX Runtime is from itself with another accuracy level.
    """
    rounding = 3e-1 if precision in ("int8", "int4") else 2e-2
    with edgemm.load(bundles[precision], device="cpu", backend="openvino") as other:
        found, wanted = (
            m.generate_text("What is this?", max_new_tokens=4, logprobs=3) for m in (other, runtimes[precision])
        )
        assert found.token_ids == wanted.token_ids
        for one, two in zip(found.logprobs, wanted.logprobs):
            np.testing.assert_allclose([t[2] for t in one.top], [t[2] for t in two.top], atol=rounding)
        mine, theirs = (m.generate_image("red heart", seed=1).pixels for m in (other, runtimes[precision]))
        assert -10 * np.log10(np.square(mine - theirs).mean() + 1e-12) > 35
