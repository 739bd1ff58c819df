"""One product of stacked weights is the products apart, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgemm.export.ort_cpu_graph import fused_integers, fused_products
from edgemm.export.specs import graph_weights
from tests.export.nano import lower_on_cpu, needs_opset_24, opened, run_graph, spec_without_data
from tests.export.passes.one_op import rewritten

pytestmark = needs_opset_24


CASES = {  # pass, precision, layers that drawing reads, the products, how many before and after
    "blocks": (fused_products, "int4", 0, "MatMulNBits", 15, 9),
    "a scale a row": (fused_integers, "int8", 0, "MatMulInteger", 14, 8),
    "a scale a row, queries, keys and values of a layer in two terms": (
        fused_integers,
        "int8",
        1,
        "MatMulInteger",
        14,
        8,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_transformer_with_fused_products_is_the_same_bit_for_bit(case, references, graphs):
    fuse, precision, depth, kind, before, after = CASES[case]
    spec = spec_without_data(graph_weights(graphs), precision, depth)
    lowered = ir.to_proto(lower_on_cpu("transformer", references(graphs["transformer"]), spec)[0])
    model = onnx.ModelProto()
    model.CopyFrom(lowered)
    assert rewritten(fuse, model)
    counts = [sum(node.op_type == kind for node in graph.graph.node) for graph in (lowered, model)]
    assert counts == [before, after]
    plain, fast = opened(lowered), opened(model)
    inputs = _inputs(plain, seed=0)
    for found, wanted in zip(run_graph(fast, inputs), run_graph(plain, inputs), strict=True):
        assert np.array_equal(found, wanted)


def test_products_of_other_inputs_or_in_float_stay(references, graphs):
    spec = spec_without_data(graph_weights(graphs), "int8")
    model, _ = lower_on_cpu("denoiser", references(graphs["denoiser"]), spec)
    assert not fused_products(model) and not fused_integers(model)
    assert not any("fused" in (node.name or "") for node in model.graph)


def _inputs(session, seed: int) -> dict[str, np.ndarray]:
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
    for value in session.get_inputs():
        if value.name not in given:
            shape = [{"b": 1, "T": slots, "m": 1}.get(size, size) for size in value.shape]
            given[value.name] = np.zeros(shape, np.float32)
    return given
