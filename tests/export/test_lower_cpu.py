"""Quantized graphs hold the products that they should, and are no larger than they need to be."""

from __future__ import annotations

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


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_every_product_of_the_transformer_is_in_blocks(lowered, model, precision, bits):
    graph, real = lowered("transformer", precision)
    products = nodes(graph, "MatMulNBits")
    assert real == precision
    assert len(products) == 7 * model.config.transformer.depth + 1  # q, k, v, o, gate, up, down; the head
    assert {(attribute(n, "bits"), attribute(n, "block_size")) for n in products} == {(bits, 32)}
    assert {attribute(n, "accuracy_level") for n in products} == {4}, "without it the arithmetic is in float: slow"
    assert float_products_with_weights(graph) == []
    assert len(nodes(graph, "GatherBlockQuantized")) == 1


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
