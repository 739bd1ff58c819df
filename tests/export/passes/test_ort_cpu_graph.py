"""ONNX Runtime's own larger operators say what the reference's operators say, on whatever the runtime asks of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto

from edgemm.export.adapter_points import adapter_inputs, adapter_points
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.ort_cpu_graph import added_norm, for_ort_cpu, modulated_norm
from edgemm.export.passes.grouped_attention import grouped_attention
from edgemm.export.specs import graph_weights
from tests.export.nano import needs_opset_24, opened, run_graph, spec_without_data

pytestmark = needs_opset_24
SLOTS, CACHE = 40, 24  # the longest context, and this one's
TOLERANCE = 2e-5  # float32, added up in another order
ASKED = {  # new tokens, and what each row has read before
    "a prompt": (9, [0]),
    "a later turn": (7, [5]),
    "prompts side by side": (9, [0, 0, 0]),
    "a token": (1, [11]),
    "a first token": (1, [0]),
    "tokens of uneven rows": (1, [3, 11, 0]),
    "the last slot": (1, [CACHE - 1]),
}


@pytest.fixture(scope="module")
def traced(references, graphs) -> ir.Model:
    return references(graphs["transformer"])


@pytest.fixture(scope="module")
def reference(traced) -> ModelProto:
    return ir.to_proto(traced)


@pytest.fixture(scope="module")
def plain(reference):
    return opened(reference)


@pytest.fixture(scope="module")
def rewritten(traced):
    model = traced.clone()
    for_ort_cpu(model, SLOTS)
    return ir.to_proto(model)


@pytest.fixture(scope="module")
def fast(rewritten):
    return opened(rewritten)


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def asked(session, s: int, starts: list[int], picture: bool) -> dict[str, np.ndarray]:
    """A cache full of numbers; with a picture, tokens 1 to 3 see one another."""
    random, b = np.random.default_rng(s + sum(starts)), len(starts)
    limit = np.array(starts)[:, None] + np.arange(s)
    index = np.full((b, s), -1)
    if picture:
        limit[:, 1:4], index[:, 1:4] = limit[:, 3:4], np.arange(3)
    given = {
        "input_ids": random.integers(0, 200, (b, s)),
        "image_index": index,
        "write_index": np.array(starts),
        "attention_limit": limit,
        "logits_index": np.full(b, s - 1),
    }
    for value in session.get_inputs():
        if value.name not in given:
            shape = [{"b": b, "T": CACHE, "m": 4}.get(size, size) for size in value.shape]
            given[value.name] = random.standard_normal(shape).astype(np.float32)
    return given


@pytest.mark.parametrize("picture", [False, True], ids=["words", "a picture"])
@pytest.mark.parametrize("what", ASKED)
def test_the_rewritten_transformer_says_what_the_reference_says(plain, fast, what, picture):
    s, starts = ASKED[what]
    given = asked(plain, s, starts, picture and s > 4)
    wanted, found = run_graph(plain, given), run_graph(fast, given)
    names = [value.name for value in plain.get_outputs()]
    assert names == [value.name for value in fast.get_outputs()]
    for name, one, other in zip(names, found, wanted, strict=True):
        for row, start in enumerate(starts):
            read = row if name == "logits" else (row, slice(None), slice(0, start + s))
            atol = TOLERANCE * np.abs(other).max()
            np.testing.assert_allclose(one[read], other[read], rtol=0, atol=atol, err_msg=f"{name}, row {row}")


def test_nothing_of_the_old_attention_is_left(model, reference, rewritten):
    found, depth = kinds(rewritten), model.config.transformer.depth
    assert found["GroupQueryAttention"] == depth and found["SkipSimplifiedLayerNormalization"] == 2 * depth - 1
    gone = ("Attention", "RotaryEmbedding", "TensorScatter", "Transpose", "Cos")
    assert all(kinds(reference)[kind] and not found[kind] for kind in gone)
    assert [v.name for v in rewritten.graph.input] == [v.name for v in reference.graph.input]


def test_one_product_gives_queries_keys_and_values_in_one_piece(traced, graphs):
    model, _ = lower_ort_cpu("transformer", traced.clone(), spec_without_data(graph_weights(graphs), "int8"))
    for_ort_cpu(model, SLOTS)
    attentions = [node for node in ir.to_proto(model).graph.node if node.op_type == "GroupQueryAttention"]
    assert attentions and all(list(node.input[1:3]) == ["", ""] for node in attentions)


def test_adapters_stand_between_the_product_and_attention(traced, plain):
    model = traced.clone()
    adapter_inputs(model, adapter_points("transformer", traced, ("q_proj", "v_proj")))
    for_ort_cpu(model, SLOTS)
    session = opened(ir.to_proto(model))
    given = asked(plain, 5, [2], False)
    for value in session.get_inputs():
        if value.name not in given:
            given[value.name] = np.zeros([2 if size == "r" else size for size in value.shape], np.float32)
    one, other = run_graph(session, given)[0], run_graph(plain, {k: given[k] for k in given if "adapter" not in k})[0]
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


@pytest.mark.parametrize("what", ["a prompt", "a later turn", "tokens of uneven rows"])
def test_openvino_reads_them_as_onnx_runtime_does(on_openvino, fast, what):
    s, starts = ASKED[what]
    given = asked(fast, s, starts, s > 4)
    found = on_openvino(given)
    for name, wanted in zip([value.name for value in fast.get_outputs()], run_graph(fast, given), strict=True):
        assert found[name].shape == wanted.shape
        for row, start in enumerate(starts):
            read = row if name == "logits" else (row, slice(None), slice(0, start + s))
            np.testing.assert_allclose(found[name][read], wanted[read], rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def on_openvino(rewritten, tmp_path_factory):
    ov = pytest.importorskip("openvino")
    from edgemm.runtimes.backend.openvino_backend import extensions

    path = tmp_path_factory.mktemp("openvino") / "graph.onnx"
    onnx.save(rewritten, path)
    core = ov.Core()
    for extension in extensions():
        core.add_extension(extension)
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture(scope="module")
def denoisers(references, graphs):
    """As it was traced, and with norms that take their scale and shift."""
    models = [references(graphs["denoiser"]) for _ in range(2)]
    for_ort_cpu(models[1], SLOTS)
    return [ir.to_proto(model) for model in models]


@pytest.mark.parametrize("b", [1, 2])
def test_modulated_norms_are_one_operator(denoisers, b):
    before, after = (Counter(node.op_type for node in model.graph.node) for model in denoisers)
    norms = before["LayerNormalization"]
    assert after == before - Counter({"Mul": norms, "Add": norms}) and norms == 5, "two blocks and the head"
    given = modulated(denoisers[1], b)
    one, other = (run_graph(opened(model), given)[0] for model in denoisers)
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(one).max())


def test_openvino_draws_with_modulated_norms(denoisers, tmp_path):
    ov = pytest.importorskip("openvino")
    onnx.save(denoisers[1], tmp_path / "graph.onnx")
    from edgemm.runtimes.backend.openvino_backend import extensions

    core, given = ov.Core(), modulated(denoisers[1], 2)
    for extension in extensions():
        core.add_extension(extension)
    compiled = core.compile_model(core.read_model(tmp_path / "graph.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    wanted = run_graph(opened(denoisers[0]), given)[0]
    np.testing.assert_allclose(compiled(given)[0], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_norm_with_weights_of_its_own_or_a_shift_of_each_row_stays(references, graphs):
    for spoil in (_with_weights_of_norms, _with_a_shift_of_each_row):
        model = references(graphs["denoiser"])
        spoil(model)
        assert not modulated_norm(model)


def modulated(model: ModelProto, b: int) -> dict[str, np.ndarray]:
    """Noise, with a modulation that does something: `random_nano` gives all weights numbers."""
    random, found = np.random.default_rng(5), {}
    for value in model.graph.input:
        shape = [{"b": b, "t": 6}.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        is_mask = value.type.tensor_type.elem_type == onnx.TensorProto.BOOL
        found[value.name] = np.ones(shape, bool) if is_mask else random.standard_normal(shape, dtype=np.float32)
    return found


@pytest.mark.parametrize("component", ["conditioner", "image_decoder"])
def test_other_components_stay_as_they_are(references, graphs, component):
    model, reference = references(graphs[component]), references(graphs[component])
    for_ort_cpu(model, SLOTS)
    assert ir.to_proto(model) == ir.to_proto(reference)


def test_what_the_operator_would_get_wrong_stays(traced):
    for spoil in (_with_int8_caches, _with_another_mask, _with_positions_from_outside):
        model = traced.clone()
        spoil(model)
        assert not grouped_attention(model, SLOTS)


def test_a_sum_that_repeats_a_row_is_not_joined_with_its_norm(traced):
    model, narrowed = traced.clone(), 0
    for value in (value for node in model.graph for value in node.outputs):
        if value.shape is not None and len(value.shape) == 3 and "linear" in value.name:
            value.shape, narrowed = ir.Shape([value.shape[0], 1, value.shape[2]]), narrowed + 1
    assert narrowed and not added_norm(model)


def _with_weights_of_norms(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            weight = node.inputs[1]
            weight.const_value = ir.Tensor(2 * weight.const_value.numpy())


def _with_a_shift_of_each_row(model: ir.Model) -> None:
    for value in (value for node in model.graph for value in node.outputs):
        if value.shape is not None and len(value.shape) == 3 and value.shape[1] == 1:
            value.shape = ir.Shape([value.shape[0], 5, value.shape[2]])


def _with_int8_caches(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if value.name.startswith("past_"):
            value.type = ir.TensorType(ir.DataType.INT8)


def _with_another_mask(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "LessOrEqual":
            node.op_type = "GreaterOrEqual"


def _with_positions_from_outside(model: ir.Model) -> None:
    (unsqueezed,) = [
        node for node in model.graph if node.op_type == "Unsqueeze" and node.inputs[0].name == "write_index"
    ]
    inputs = {value.name: value for value in model.graph.inputs}
    unsqueezed.replace_input_with(0, inputs["logits_index"])
