"""What a token says does not depend on whether others were read with it, to the last bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgemm.export.component_graphs import component_graphs
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.ort_cpu_graph import for_ort_cpu
from edgemm.export.specs import graph_weights
from edgemm.runtimes.backend.ort_backend import denormals_as_zero
from tests.export.nano import needs_opset_24, opened, spec_without_data
from tests.traced import traced

pytestmark = needs_opset_24
CACHE = 40
PROMPT = 7


@pytest.fixture(scope="module", params=["int8", "int4"])
def session(request, model):
    graphs = {"transformer": component_graphs(model, prompt_lookup=True)["transformer"]}
    reference = traced(graphs["transformer"])
    spec = spec_without_data(graph_weights(graphs), request.param)
    lowered, _ = lower_ort_cpu("transformer", reference, spec)
    for_ort_cpu(lowered, CACHE)
    return opened(ir.to_proto(lowered))


def read(session, ids, first, caches):
    """The logits (s, v) after each of the tokens; `caches` then hold them."""
    s, names = len(ids), [value.name for value in session.get_outputs()]
    width = next(value for value in session.get_inputs() if value.name == "image_tokens").shape[2]
    given = {
        "input_ids": np.array([ids]),
        "image_tokens": np.zeros((1, 1, width), np.float32),
        "image_index": np.full((1, s), -1),
        "write_index": np.array([first]),
        "attention_limit": first + np.arange(s)[None],
        "logits_index": np.array([s - 1]),
        "draft_index": np.arange(s - 1)[None],
        **caches,
    }
    with denormals_as_zero():
        found = dict(zip(names, session.run(None, given), strict=True))
    caches.update({name: found[name.replace("past_", "present_")] for name in caches})
    return np.concatenate([found["draft_logits"][0], found["logits"]])


@pytest.mark.parametrize("together", [2, 3, 4, 7])
def test_a_token_alone_has_the_bits_that_it_has_among_others(session, together):
    shapes = {v.name: [1 if n == "b" else CACHE if n == "T" else n for n in v.shape] for v in session.get_inputs()}
    alone, among = (
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("past_")}
        for _ in range(2)
    )
    ids = np.random.default_rng(together).integers(0, 200, CACHE).tolist()
    for caches in (alone, among):
        read(session, ids[:PROMPT], 0, caches)
    for first in range(PROMPT, CACHE - together, together):  # never the last slot
        one = [read(session, [ids[slot]], slot, alone)[0] for slot in range(first, first + together)]
        np.testing.assert_array_equal(read(session, ids[first : first + together], first, among), one)
        for name, cache in alone.items():
            np.testing.assert_array_equal(among[name][:, :, : first + together], cache[:, :, : first + together])
    before = read(session, [ids[CACHE - 1]], CACHE - 1, alone)  # nothing stands behind it
    assert np.isfinite(before).all()
