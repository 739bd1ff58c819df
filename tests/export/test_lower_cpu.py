"""Quantized graphs hold the products that they should, and are no larger than they need to be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.errors import UsageError
from edgemm.export.lower_cpu import lower

COMPONENTS = ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder")


@pytest.fixture(scope="module")
def lowered(references, graphs):
    made: dict[tuple[str, str], tuple[ModelProto, str]] = {}

    def get(component: str, precision: str) -> tuple[ModelProto, str]:
        key = component, precision
        if key not in made:
            made[key] = lower(component, references(graphs[component]), precision)
        return made[key]

    return get


def nodes(model, *kinds):
    return [node for node in model.graph.node if node.op_type in kinds]


def float_products_with_weights(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node for node in nodes(model, "MatMul", "Gemm") if node.input[1] in weights]


def attribute(node, name):
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


@pytest.mark.parametrize(("precision", "bits"), [("int8", {8: 15}), ("int4", {4: 15})])
def test_every_product_of_the_transformer_is_in_blocks(lowered, precision, bits):
    """q, k, v, o, gate, up and down of two layers, and the head."""
    graph, real = lowered("transformer", precision)
    products = nodes(graph, "MatMulNBits")
    assert real == precision
    assert Counter(attribute(node, "bits") for node in products) == bits
    assert {attribute(node, "block_size") for node in products} == {32}
    assert {attribute(node, "accuracy_level") for node in products} == {4}, "else the arithmetic is in float: slow"
    assert float_products_with_weights(graph) == []
    assert len(nodes(graph, "GatherBlockQuantized")) == 1


@pytest.mark.parametrize(("depth", "fine"), [(1, 3), (2, 6)])
def test_in_int4_keys_and_values_that_drawing_reads_keep_8_bits(references, graphs, depth, fine):
    graph, real = lower("transformer", references(graphs["transformer"]), "int4", depth)
    products = nodes(graph, "MatMulNBits")
    assert real == "int4"
    assert Counter(attribute(node, "bits") for node in products) == {8: fine, 4: 15 - fine}
    shapes = Counter((attribute(node, "K"), attribute(node, "N")) for node in products if attribute(node, "bits") == 8)
    assert shapes == {(64, 32): 2 * depth, (128, 64): depth}  # k and v, down


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("component", ["conditioner", "denoiser"])
def test_conditioner_and_denoiser_multiply_whole_numbers(lowered, component, precision):
    graph, real = lowered(component, precision)
    assert real == "int8"
    assert len(nodes(graph, "MatMulInteger")) == {"conditioner": 8, "denoiser": 14}[component]


def test_what_touches_the_pictures_own_numbers_stays_in_float(lowered):
    first, last = float_products_with_weights(lowered("denoiser", "int8")[0])
    assert first.input[0] == "noisy_tokens"
    adding = [n for n in lowered("denoiser", "int8")[0].graph.node if last.output[0] in n.input]
    assert [out for node in adding for out in node.output] == ["prediction"]


def test_the_whitening_stays_in_float(lowered):
    (product,) = float_products_with_weights(lowered("conditioner", "int8")[0])
    assert "whiten_matrix" in product.input[1]


@pytest.mark.parametrize("component", ["image_encoder", "image_decoder"])
def test_eye_and_decoder_stay_as_they_are(lowered, component):
    graph, real = lowered(component, "int4")
    assert real == "fp32"
    assert graph == lowered(component, "fp32")[0]


def test_the_embedding_is_off_by_half_a_step_at_most(lowered, model):
    tensors = {t.name: numpy_helper.to_array(t) for t in lowered("transformer", "int8")[0].graph.initializer}
    table = model.transformer.embed_tokens.weight.numpy()
    scale = tensors["embedding_scale"].repeat(32, axis=1)
    read = (tensors["embedding_q8"].astype(np.float32) - 128) * scale
    assert (np.abs(read - table) <= scale * 0.501).all()
    assert not any(table.shape == tensor.shape and tensor.dtype == np.float32 for tensor in tensors.values())


@pytest.mark.parametrize("component", COMPONENTS)
def test_lowering_twice_gives_the_same_bytes_and_leaves_the_reference_alone(references, graphs, lowered, component):
    reference = references(graphs[component])
    again = lower(component, reference, "int8")[0]
    assert again.SerializeToString() == lowered(component, "int8")[0].SerializeToString()
    assert reference == references(graphs[component])


def test_an_unknown_precision_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"'fp8' is none of: fp32, int8, int4"):
        lower("transformer", ModelProto(), "fp8")


def embedding_and_head(width: int) -> tuple[ModelProto, np.ndarray]:
    """The part of a transformer that has a table, in an opset that every ONNX Runtime reads."""
    table = np.random.default_rng(0).standard_normal((40, width), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embed"),
            helper.make_node("Gemm", ["x", "table"], ["logits"], name="head", transB=1),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 40])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), table


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("width", [48, 64, 96, 128])  # no multiple of a block; an even and an odd number of blocks
def test_any_width_can_be_lowered(precision, width):
    model, table = embedding_and_head(width)
    graph, _ = lower("transformer", model, precision)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.arange(40)
    (logits,) = session.run(None, {"input_ids": ids})
    wanted = table @ table.T
    noise = np.sqrt(np.square(logits - wanted).mean() / np.square(wanted).mean())
    assert noise < {"int8": 0.02, "int4": 0.2}[precision]
    assert (np.asarray(logits).argmax(axis=1) == ids).all()
