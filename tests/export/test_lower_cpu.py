"""`--precision` on CPUs: what most layers become and which stay finer, of whatever weights there are."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemm.errors import UsageError
from edgemm.export import lower_cpu
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.products import products_of
from edgemm.export.schemes import offered_precisions, read_schemes
from edgemm.export.specs import graph_weights, make_specs
from edgemm.quantize import layers as recipe
from edgemm.quantize.layers import choose_layers
from edgemm.quantize.make import Prepared, make_spec
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import HEAD, REST, Spec
from tests.export.nano import lower_on_cpu, spec_without_data

COMPONENTS = ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder")


def nodes(model, *kinds):
    return [node for node in model.graph.node if node.op_type in kinds]


def attribute(node, name):
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_product_of_a_graph_goes_by_a_name_that_a_spec_has(references, graphs, component):
    """Else its layer would stay in float without a word; the conditioner's whitening, which does, is no layer."""
    named = {product.layer for product in products_of(references(graphs[component]), component)}
    assert named - {"conditioner"} <= graph_weights(graphs).keys()


def test_what_shares_a_scale_a_token_is_smoothed(model):
    words = offered_precisions("cpu")
    found = {precision: make_specs(copy.deepcopy(model), read_schemes("cpu", precision)) for precision in words}
    assert {precision: len(specs) for precision, specs in found.items()} == {"fp32": 0, "int8": 1, "int4": 1}
    feeds = "transformer.layers.0.post_attention_layernorm"  # layer 1 is the last that drawing reads
    assert found["int4"]["cpu"].document.smoothed == (feeds,)
    sites = {site.rpartition(".")[2] for site in found["int8"]["cpu"].document.smoothed}
    assert sites == {"post_attention_layernorm"}, "of what else is read, drawing included, inputs have 16 bits"


def test_drawing_reads_in_int4_what_it_reads_in_int8(model):
    """Keys and values, bit for bit, though what comes above them has 4 bits."""
    swapped = {}
    for precision in ("int8", "int4"):
        swapped[precision] = copy.deepcopy(model)
        spec = make_specs(swapped[precision], read_schemes("cpu", precision))["cpu"]
        swap(swapped[precision], spec, folded=True)
        assert precision == "int8" or spec.layer("transformer.layers.1.mlp.up_proj").bits == 4
    fine, coarse = (swapped[precision].prompt_cache(["red heart"])[0] for precision in ("int8", "int4"))
    for one, other in zip(fine, coarse, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_in_int4_what_4_bits_harm_most_keeps_8_bits_in_wide_blocks(references, graphs):
    spec = spec_without_data(graph_weights(graphs), "int4")
    lowered, real = lower_on_cpu("transformer", references(graphs["transformer"]), spec)
    graph = ir.to_proto(lowered)
    products = [node for node in nodes(graph, "MatMulNBits") if node.output[0] != "logits"]
    assert real == "int4"
    shapes = Counter(tuple(attribute(node, n) for n in ("bits", "block_size", "K", "N")) for node in products)
    assert shapes == {
        (8, 64, 64, 64): 2,  # q
        (8, 64, 64, 32): 4,  # k and v
        (8, 128, 128, 64): 2,  # down
        (4, 32, 64, 64): 2,  # o
        (4, 32, 64, 128): 4,  # gate and up
    }


@pytest.mark.parametrize("component", COMPONENTS)
def test_lowering_leaves_the_reference_alone(references, graphs, component):
    reference = references(graphs[component])
    lower_on_cpu(component, reference, spec_without_data(graph_weights(graphs), "int8"))
    assert ir.to_proto(reference) == ir.to_proto(references(graphs[component]))
    assert ir.to_proto(lower_on_cpu(component, reference, None)[0]) == ir.to_proto(reference)


@pytest.mark.parametrize("component", COMPONENTS)
def test_for_a_browser_no_product_is_in_blocks(references, graphs, component):
    """wasm unpacks blocks at every run: a token 16 to 30 times later than in float32 (benchmarks/web_forms.py)."""
    spec = spec_without_data(graph_weights(graphs), "int8", target="web")
    lowered, real = lower_on_cpu(component, references(graphs[component]), spec, "web")
    kinds = Counter(node.op_type for node in lowered.graph)
    assert not kinds["MatMulNBits"] and not kinds["GatherBlockQuantized"]
    products = [product for product in products_of(references(graphs[component]), component) if not product.is_lookup]
    layers = [spec.layer(product.layer) for product in products]
    assert kinds["MatMulInteger"] == sum(layer.activations.startswith("token") for layer in layers)
    assert real == ("int8" if any(layer.bits for layer in layers) else "fp32")


def test_for_a_browser_eight_bits_of_inputs_are_the_heads_alone(graphs):
    """Elsewhere they would pass a float's last digit on, and the page would draw another picture than the runtime."""
    layers = spec_without_data(graph_weights(graphs), "int8", target="web").document.layers
    drawn = {name: layer for name, layer in layers.items() if name.startswith(("conditioner.", "denoiser."))}
    read = {name: layer for name, layer in layers.items() if name.startswith("transformer.") and name != HEAD}
    assert {layer.activations for layer in drawn.values() if layer.bits} == {"token16"}
    assert {(layer.bits, layer.activations) for layer in read.values()} == {(8, "float")}
    assert layers[HEAD].activations == "token"


def test_a_wide_product_is_cut_for_a_browser_and_says_the_same(monkeypatch):
    monkeypatch.setattr(lower_cpu, "WIDEST", 16)
    model, table = embedding_and_head(64, turned=True)
    spec = spec_of(table, "int8", target="web")
    cut, _ = lower_on_cpu("transformer", model, spec, "web")
    monkeypatch.setattr(lower_cpu, "WIDEST", 40)
    whole, _ = lower_on_cpu("transformer", model, spec, "web")
    kinds = [Counter(node.op_type for node in graph.graph)["MatMulInteger"] for graph in (cut, whole)]
    assert kinds == [3, 1]
    np.testing.assert_array_equal(*(run_lowered(graph)[0] for graph in (cut, whole)))


def test_the_embedding_is_stored_once_for_a_browser(references, graphs):
    spec = spec_without_data(graph_weights(graphs), "int8", target="web")
    lowered, _ = lower_on_cpu("transformer", references(graphs["transformer"]), spec, "web")
    size = graph_weights(graphs)[HEAD].numel()
    assert [
        value.const_value.dtype for value in lowered.graph.initializers.values() if value.const_value.size == size
    ] == [ir.DataType.INT8]


def test_an_unknown_precision_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"'fp8' is none of what target cpu has: fp32, int8, int4"):
        read_schemes("cpu", "fp8")


TABLE = "embed_tokens.weight"


def run_lowered(graph: ir.Model, wanted: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(wanted, {"input_ids": np.arange(40)[None]})


def embedding_and_head(width: int, turned: bool) -> tuple[ir.Model, np.ndarray]:
    """The part of a transformer that has a table, in an opset that every ONNX Runtime reads; a head is a Gemm or turns
    the table beforehand."""
    table = np.random.default_rng(0).standard_normal((40, width), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [TABLE, "input_ids"], ["x"], name="embed"),
            *(
                [
                    helper.make_node("Transpose", [TABLE], ["turned"], perm=[1, 0]),
                    helper.make_node("MatMul", ["x", "turned"], ["logits"], name="head"),
                ]
                if turned
                else [
                    helper.make_node("Reshape", ["x", "rows"], ["flat"]),
                    helper.make_node("Gemm", ["flat", TABLE], ["said"], name="head", transB=1),
                    helper.make_node("Unsqueeze", ["said", "first"], ["logits"]),
                ]
            ),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 40])],
        [
            numpy_helper.from_array(table, TABLE),
            numpy_helper.from_array(np.array([-1, width]), "rows"),
            numpy_helper.from_array(np.array([0]), "first"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(model), table


def spec_of(table: np.ndarray, precision: str, drawing_depth: int = 0, target: str = "cpu") -> Spec:
    return spec_without_data({HEAD: torch.from_numpy(table)}, precision, drawing_depth, target)


@pytest.mark.parametrize("target, precision", [("cpu", "int8"), ("cpu", "int4"), ("web", "int8")])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("width", [48, 64, 96, 128])  # no multiple of a block; an even and an odd number of blocks
def test_any_width_can_be_lowered(target, precision, width, turned):
    model, table = embedding_and_head(width, turned)
    graph, _ = lower_on_cpu("transformer", model, spec_of(table, precision, target=target), target)
    ids = np.arange(40)[None]
    (logits,) = run_lowered(graph)
    wanted = (table @ table.T)[None]
    noise = np.sqrt(np.square(logits - wanted).mean() / np.square(wanted).mean())
    assert noise < {"int8": 0.02, "int4": 0.2}[precision]
    assert (np.asarray(logits).argmax(axis=-1) == ids).all()


def test_rare_tokens_have_4_bits_at_int4_and_every_token_its_own_row(monkeypatch):
    monkeypatch.setattr(recipe, "FREQUENT", {4: 16, 8: 16})
    model, table = embedding_and_head(64, turned=False)
    monkeypatch.setattr(recipe, "HEAVY", 1.0)
    assert list(spec_of(table, "int8", drawing_depth=1).document.layers) == [HEAD]
    spec = spec_of(table, "int4", drawing_depth=1)
    assert (spec.layer(HEAD).bits, spec.layer(HEAD + REST).bits) == (8, 4)
    graph, _ = lower_on_cpu("transformer", model, spec)
    (logits,) = run_lowered(graph)
    said = spec.dequantized(HEAD).numpy()
    assert np.abs(said - table).max() < 0.3
    np.testing.assert_allclose(logits[0], said @ said.T, atol=0.02 * np.abs(logits).max())
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    codes = sum(tensor.size for tensor in tensors if tensor.dtype == ir.DataType.UINT8)
    assert codes == 16 * 64 + 24 * 32, "stored once, two rare codes a byte"


def test_weights_are_not_in_memory_once_more_for_each_lowering():
    """What a lowering leaves as it is, it reads where the reference has it; what it rewrites, it does not hold."""
    model, table = embedding_and_head(64, turned=True)
    spec = spec_of(table, "int8")
    kept, _ = lower_on_cpu("transformer", model, None)
    assert kept.graph.initializers[TABLE].const_value is model.graph.initializers[TABLE].const_value
    assert TABLE not in lower_on_cpu("transformer", model, spec)[0].graph.initializers
    node = ir.node("ReduceSum", [model.graph.initializers[TABLE]], outputs=[ir.val("sum", ir.DataType.FLOAT, [1, 1])])
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    graph, _ = lower_on_cpu("transformer", model, spec)
    assert graph.graph.initializers[TABLE].const_value is model.graph.initializers[TABLE].const_value
    (summed,) = run_lowered(graph, ["sum"])
    assert summed.item() == pytest.approx(table.sum(), rel=1e-4), (
        "a weight that is read elsewhere too keeps its numbers"
    )


def test_at_int8_rare_tokens_and_late_filters_are_cut_only_where_the_embedding_outweighs_the_layers():
    late = "image_encoder.encoder.blocks.12.expand"
    shapes = {HEAD: (49_152, 576), late: (1152, 192), "transformer.layers.0.mlp.up_proj": (100_000, 576)}
    layers = choose_layers(shapes, "int8", "int8", drawing_depth=1)
    assert layers[HEAD].rows == 0 and late not in layers
    del shapes["transformer.layers.0.mlp.up_proj"]
    layers = choose_layers(shapes, "int8", "int8", drawing_depth=1)
    assert layers[HEAD].rows == recipe.FREQUENT[8] and layers[HEAD + REST].bits == 4 and layers[late].bits == 8


def test_tokens_that_spell_pictures_are_fine_wherever_they_stand(monkeypatch):
    """ONNX Runtime looks up and multiplies with rows in the spec's order, and tells logits in the vocabulary's."""
    monkeypatch.setattr(recipe, "FREQUENT", {4: 16, 8: 16})
    model, table = embedding_and_head(64, turned=False)
    weights = {HEAD: torch.from_numpy(table)}
    first = [3, 30, 39]
    places = torch.argsort(torch.tensor(first + [token for token in range(40) if token not in first])).int()
    spec = make_spec(weights, choose_layers({HEAD: table.shape}, "int4", "int8", 1), Prepared(places=places))
    said = spec.dequantized(HEAD).numpy()
    off = np.abs(said - table).mean(-1)
    assert off[first].max() < 0.3 * off[16:29].min(), "30 and 39 are rare, and have 8 bits"
    assert off[13] < 0.3 * off[14], "as many frequent ones as before"
    lower_ort_cpu("transformer", model, spec)
    (logits,) = run_lowered(model)
    np.testing.assert_allclose(logits[0], said @ said.T, atol=0.02 * np.abs(logits).max())


def test_other_families_keep_pictures_among_their_rare_tokens(monkeypatch):
    monkeypatch.setattr(recipe, "FREQUENT", {4: 16, 8: 16})
    spec = spec_of(embedding_and_head(64, turned=False)[1], "int4")
    assert list(spec.document.layers) == [HEAD]
