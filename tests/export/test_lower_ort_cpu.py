"""Quantized graphs compute with the spec's own numbers, hold the products they should, and are not too large."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.errors import InputError
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.quantize.make import quantize
from edgemm.quantize.number_formats import Integers
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.rounding import kquant, rtn
from edgemm.quantize.simulated import QuantizedLinear
from edgemm.quantize.spec import HEAD, SCHEMA_VERSION, Document, Layer, Spec, tensors_hash
from tests.export.nano import spec_without_data

COMPONENTS = ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder")


@pytest.fixture(scope="module")
def specs(model):
    asked = {"int8": QuantizeOptions("w8a8", "int8", ""), "int4": QuantizeOptions("int4", "int8", "")}
    return {precision: quantize(copy.deepcopy(model), options) for precision, options in asked.items()}


@pytest.fixture(scope="module")
def lowered(references, graphs, specs):
    made: dict[tuple[str, str], tuple[ModelProto, str]] = {}

    def get(component: str, precision: str) -> tuple[ModelProto, str]:
        key = component, precision
        if key not in made:
            made[key] = lowered_proto(component, references(graphs[component]), specs[precision])
        return made[key]

    return get


def lowered_proto(component: str, model: ModelProto | ir.Model, spec: Spec) -> tuple[ModelProto, str]:
    inner = ir.from_proto(model) if isinstance(model, ModelProto) else model
    graph, precision = lower_ort_cpu(component, inner, spec)
    return ir.to_proto(graph), precision


def nodes(model, *kinds):
    return [node for node in model.graph.node if node.op_type in kinds]


def float_products_with_weights(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node for node in nodes(model, "MatMul", "Gemm") if node.input[1] in weights]


def attribute(node, name):
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


@pytest.mark.parametrize(("precision", "bits", "integers"), [("int8", {8: 1}, 14), ("int4", {8: 12, 4: 3}, 0)])
def test_every_product_of_the_transformer_is_of_whole_numbers(lowered, precision, bits, integers):
    """q, k, v, o, gate, up and down of two layers, and the head.  In int4 q, k, v and down keep 8 bits, in blocks as
    wide as their inputs allow, and so do the first layer, which feeds what drawing reads, and the head, which is the
    embedding; in int8 all but the head have a scale a
    channel."""
    graph, real = lowered("transformer", precision)
    products = nodes(graph, "MatMulNBits")
    assert real == precision
    assert Counter(attribute(node, "bits") for node in products) == bits
    assert len(nodes(graph, "MatMulInteger")) == integers
    assert {attribute(node, "block_size") for node in products} == ({64} if precision == "int8" else {32, 64, 128})
    assert {attribute(node, "accuracy_level") for node in products} == {4}, "else the arithmetic is in float: slow"
    assert float_products_with_weights(graph) == []


def test_head_and_embedding_are_stored_once(lowered):
    graph, _ = lowered("transformer", "int8")
    (lookup,) = nodes(graph, "GatherBlockQuantized")
    (head,) = [node for node in nodes(graph, "MatMulNBits") if node.output[0] == "logits"]
    assert lookup.input[0] == head.input[1]
    numbers = {tensor.name: np.prod(tensor.dims) for tensor in graph.graph.initializer if 264 in tensor.dims}
    assert sorted(numbers.values()) == [264, 264 * 64], "the codes, and a scale a block"


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("component", ["conditioner", "denoiser"])
def test_conditioner_and_denoiser_multiply_whole_numbers(lowered, component, precision):
    graph, real = lowered(component, precision)
    assert real == "int8"
    assert len(nodes(graph, "MatMulInteger")) == {"conditioner": 8, "denoiser": 14}[component]


def test_layers_that_read_the_same_activation_round_it_once(lowered):
    """The condition goes to both blocks' modulation and the last one's; the prompt's whitened vector to two layers."""
    assert len(nodes(lowered("denoiser", "int8")[0], "DynamicQuantizeLinear")) == 12
    assert len(nodes(lowered("conditioner", "int8")[0], "DynamicQuantizeLinear")) == 7


def test_what_touches_the_pictures_own_numbers_stays_in_float(lowered):
    first, last = float_products_with_weights(lowered("denoiser", "int8")[0])
    assert first.input[0] == "noisy_tokens"
    adding = [n for n in lowered("denoiser", "int8")[0].graph.node if last.output[0] in n.input]
    assert [out for node in adding for out in node.output] == ["prediction"]


def test_the_whitening_stays_in_float(lowered):
    """Float16 in the file: its sum is float32's."""
    graph = lowered("conditioner", "int8")[0]
    assert float_products_with_weights(graph) == []
    (product,) = [node for node in nodes(graph, "MatMul") if "whiten_matrix" in node.input[1]]
    (cast,) = [node for node in nodes(graph, "Cast") if node.output[0] == product.input[1]]
    assert attribute(cast, "to") == TensorProto.FLOAT


def test_the_decoder_stays_as_it_is(lowered, references, graphs):
    graph, real = lowered("image_decoder", "int4")
    assert real == "fp32"
    assert graph == ir.to_proto(references(graphs["image_decoder"]))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_puts_pictures_into_words_is_in_4_bits(lowered, precision):
    graph, real = lowered("image_encoder", precision)
    assert real == precision
    assert [attribute(node, "bits") for node in nodes(graph, "MatMulNBits")] == [4, 4]
    assert float_products_with_weights(graph) == []


def test_filters_and_letters_are_float16_in_the_file_and_float32_in_memory(specs):
    filters, letters = torch.randn(8, 3, 3, 3), torch.randn(40, 16)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2]),
            helper.make_node("GatherND", ["letters", "ids"], ["rows"]),
        ],
        "eye",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 9, 9]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 8, 4, 4]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 16]),
        ],
        [numpy_helper.from_array(filters.numpy(), "w"), numpy_helper.from_array(letters.numpy(), "letters")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found, _ = lowered_proto("image_encoder", model, specs["int8"])
    assert {tensor.data_type for tensor in found.graph.initializer} == {TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 9, 9)
    y, rows = session.run(None, {"x": x.numpy(), "ids": np.array([[3], [1]])})
    wanted = torch.nn.functional.conv2d(x, filters.half().float(), stride=2)
    np.testing.assert_allclose(y, wanted.numpy(), atol=1e-5)
    np.testing.assert_array_equal(rows, letters[[3, 1]].half().float().numpy())


def test_at_int4_late_filters_and_letters_are_8_bits_in_the_file_and_float32_in_memory():
    torch.manual_seed(0)
    filters, letters = torch.randn(640, 192, 1, 1), torch.randn(40, 64)
    name = "module.encoder.blocks.9.expand.weight"
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", name], ["y"]), helper.make_node("GatherND", ["letters", "ids"], ["rows"])],
        "eye",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 192, 4, 4]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 640, 4, 4]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64]),
        ],
        [numpy_helper.from_array(filters.numpy(), name), numpy_helper.from_array(letters.numpy(), "letters")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    weights = {"image_encoder.encoder.blocks.9.expand": filters.flatten(1), "image_encoder.words.letters": letters}
    assert not spec_without_data(weights, "int8").document.layers, "what is float16 opens sooner"
    spec = spec_without_data(weights, "int4")
    assert set(spec.document.layers) == {"image_encoder.encoder.blocks.9.expand", "image_encoder.words.letters"}
    stored, _ = lowered_proto("image_encoder", model, spec)
    assert sum(len(tensor.raw_data) for tensor in stored.graph.initializer) < (640 * 192 + 40 * 64) * 1.07
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = onnxruntime.InferenceSession(stored.SerializeToString(), options)
        assert {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node} == {"Conv", "GatherND"}
    x = torch.randn(2, 192, 4, 4)
    y, rows = session.run(None, {"x": x.numpy(), "ids": np.array([[3], [1]])})
    said = spec.dequantized("image_encoder.encoder.blocks.9.expand").view_as(filters)
    np.testing.assert_allclose(y, torch.nn.functional.conv2d(x, said).numpy(), atol=1e-3)
    np.testing.assert_array_equal(rows, spec.dequantized("image_encoder.words.letters")[[3, 1]].numpy())


def test_the_embedding_is_off_by_half_a_step_at_most(model, specs):
    table = model.transformer.embed_tokens.weight
    numbers = specs["int8"].integers(HEAD)
    off = (numbers.dequantized() - table).abs()
    assert (off <= numbers.scales.repeat_interleave(64, dim=1) * 0.501).all()


@pytest.mark.parametrize("component", COMPONENTS)
def test_lowering_twice_gives_the_same_bytes(references, graphs, lowered, specs, component):
    again = lowered_proto(component, references(graphs[component]), specs["int8"])[0]
    assert again.SerializeToString() == lowered(component, "int8")[0].SerializeToString()


LAYER = "transformer.layers.0.mlp.up_proj"


def one_product(k: int, n: int, bias: bool = False) -> tuple[ModelProto, torch.nn.Linear]:
    """x @ W + b as the tracer writes it, in an opset that every ONNX Runtime reads."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(k, n, bias=bias).requires_grad_(False)
    node = helper.make_node("MatMul", ["x", "w"], ["product" if bias else "y"], name="product")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', 'module', 'module.{LAYER}', 'linear']")
    weights = [numpy_helper.from_array(np.ascontiguousarray(linear.weight.numpy().T), "w")]
    nodes = [node]
    if bias:
        weights.append(numpy_helper.from_array(linear.bias.numpy(), "b"))
        nodes.append(helper.make_node("Add", ["product", "b"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["r", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["r", n])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), linear


def spec_of(numbers: Integers, layer: Layer, name: str = LAYER, **more: np.ndarray) -> Spec:
    parts = {"codes": numbers.codes, "scales": numbers.scales, "zeros": numbers.zeros}
    tensors = {f"{name}.{part}": tensor.numpy() for part, tensor in parts.items()}
    tensors |= {f"{name}.{part}": array for part, array in more.items()}
    hashed = tensors_hash(tensors)
    return Spec(Document(SCHEMA_VERSION, "0", "c", "0", "", "", "", {name: layer}, (), hashed), tensors)


def answers(k: int, layer: Layer, numbers: Integers, bias: bool = False, **more: np.ndarray):
    """What ONNX Runtime computes with the spec, and what the swapped torch module does."""
    graph, linear = one_product(k, 24, bias)
    spec = spec_of(numbers, layer, **more)
    lowered, _ = lowered_proto("transformer", graph, spec)
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(7, k, generator=torch.Generator().manual_seed(1))
    (found,) = session.run(None, {"x": x.numpy()})
    return np.asarray(found), QuantizedLinear(linear, layer, spec, LAYER)(x).numpy()


@pytest.mark.parametrize("activations", ["block", "float"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group", "k"), [(4, 32, 96), (4, 32, 80), (4, 64, 128), (8, 32, 96), (8, 0, 80)])
def test_onnx_runtime_and_the_swapped_module_agree_on_blocks(activations, symmetric, bits, group, k):
    """Odd numbers of blocks, widths that are no whole blocks, every kind of zero-point."""
    weight = one_product(k, 24)[1].weight
    numbers = kquant(weight, bits, group, symmetric)
    found, wanted = answers(k, Layer(bits, group, symmetric, activations), numbers)
    tolerance = 1e-5 if activations == "float" else 0.02  # the kernel rounds x where we do, ties may differ
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("activations", ["tensor", "token", "token16", "static"])
@pytest.mark.parametrize("bias", [True, False])
def test_onnx_runtime_and_the_swapped_module_agree_on_whole_numbers(activations, bias):
    numbers = rtn(one_product(80, 24)[1].weight, 8, 0, True)
    more = {"range": np.array([1.0, 2.5], np.float32)} if activations == "static" else {}
    found, wanted = answers(80, Layer(8, activations=activations), numbers, bias, **more)
    tolerance = 1e-4 if activations == "token16" else 1e-2  # one rounding that falls the other way
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_inputs_in_two_terms_are_as_good_as_float_and_rows_of_zeros_stay_zeros():
    numbers = rtn(one_product(96, 24)[1].weight, 8, 0, True)
    lowered, _ = lowered_proto("transformer", one_product(96, 24)[0], spec_of(numbers, Layer(8, activations="token16")))
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    x[1, 7], x[3] = 1000, 0  # a number that eight bits would leave nothing else beside
    (found,) = session.run(None, {"x": x})
    wanted = x.astype(np.float64) @ numbers.dequantized().double().numpy().T
    assert (np.abs(found - wanted).max(1) <= 3e-4 * np.abs(wanted).max(1)).all()
    assert not found[3].any()


@pytest.mark.parametrize("activations", ["token", "token16"])
def test_a_scale_a_token_is_one_kernel_and_no_token_depends_on_another(activations):
    numbers = rtn(one_product(96, 24)[1].weight, 8, 0, True)
    graph, _ = one_product(96, 24, False)
    lowered, _ = lowered_proto("transformer", graph, spec_of(numbers, Layer(8, activations=activations)))
    options = onnxruntime.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.log_severity_level = 3
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = onnxruntime.InferenceSession(lowered.SerializeToString(), options)
        kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert "MatMulIntegerToFloat" in kernels and "MatMulInteger" not in kernels
    x = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    x[3] *= 1000  # as some tokens' are
    together = np.asarray(session.run(None, {"x": x})[0])
    for row in range(7):
        assert np.array_equal(session.run(None, {"x": x[row : row + 1]})[0][0], together[row])


def test_a_low_rank_branch_is_added(rank=4):
    random = np.random.default_rng(0)
    down, up = random.standard_normal((rank, 64), np.float32), random.standard_normal((24, rank), np.float32)
    numbers = rtn(one_product(64, 24)[1].weight, 4, 32, False)
    layer = Layer(4, 32, False, "float", rank=rank)
    found, wanted = answers(64, layer, numbers, low_rank_down=down, low_rank_up=up)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "construct"),
    [
        (Layer(4, 32, False, "tensor"), "MatMulInteger takes symmetric 8-bit weights"),
        (Layer(8, 0, False, "tensor"), "MatMulInteger takes symmetric 8-bit weights"),
        (Layer(4, 24, False, "block"), "groups of 16, 32, 64, ..., not 24"),
    ],
)
def test_what_the_target_cannot_take_is_refused_with_its_name(layer, construct):
    graph, linear = one_product(96, 24)
    spec = spec_of(rtn(linear.weight, layer.bits or 8, layer.group, layer.symmetric), layer)
    with pytest.raises(InputError, match=f"{LAYER}.*{construct}"):
        lowered_proto("transformer", graph, spec)


def test_a_layer_left_in_float_keeps_its_node(references, graphs, specs):
    spec = specs["int8"]
    document = dataclasses.replace(spec.document, layers=spec.document.layers | {LAYER: Layer(None, reason="asked")})
    graph, _ = lowered_proto("transformer", references(graphs["transformer"]), Spec(document, spec.tensors))
    assert len(float_products_with_weights(graph)) == 1
