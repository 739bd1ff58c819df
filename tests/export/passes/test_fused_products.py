"""One product of stacked weights is the products apart, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgemm.export.passes.fused_products import fused_products
from tests.export.nano import needs_opset_24, open_graph, run_graph

pytestmark = needs_opset_24


def fused(path) -> tuple[onnx.ModelProto, bool]:
    model = onnx.load(path)
    return model, fused_products(model)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_transformer_with_fused_products_is_the_same_bit_for_bit(bundles, runtimes, precision, tmp_path):
    runtime = runtimes[precision]
    variant = runtime.manifest.variant("transformer", "cpu")
    model, changed = fused(bundles[precision] / variant.graph)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    before = [n for n in onnx.load(bundles[precision] / variant.graph).graph.node if n.op_type == "MatMulNBits"]
    assert changed and len(products) < len(before)
    assert sum(a.i for n in products for a in n.attribute if a.name == "N") == sum(
        a.i for n in before for a in n.attribute if a.name == "N"
    )
    path = tmp_path / variant.graph
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    inputs = _inputs(runtime, seed=0)
    for found, wanted in zip(
        run_graph(open_graph(tmp_path, variant), inputs),
        run_graph(open_graph(bundles[precision], variant), inputs),
        strict=True,
    ):
        assert np.array_equal(found, wanted)


def test_products_of_other_inputs_or_in_float_stay(bundles, runtimes):
    variant = runtimes["int8"].manifest.variant("denoiser", "cpu")
    model, changed = fused(bundles["int8"] / variant.graph)
    assert not changed and not any(node.op_type == "Split" and "fused" in node.name for node in model.graph.node)


def _inputs(runtime, seed: int) -> dict[str, np.ndarray]:
    """Five tokens, the cache empty."""
    random, s, slots = np.random.default_rng(seed), 5, 8
    whole = np.arange(s)[None]
    given = {
        "input_ids": random.integers(0, 256, (1, s)),
        "image_index": np.full((1, s), -1),
        "write_index": np.zeros(1, np.int64),
        "attention_limit": whole,
        "logits_index": np.array([s - 1]),
    }
    for name, spec in runtime.engine("transformer").inputs.items():
        if name not in given:
            shape = [{"b": 1, "T": slots, "m": 1}.get(e, e) for e in spec.shape]
            given[name] = np.zeros(shape, np.float32)
    return given
