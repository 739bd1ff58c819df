"""One spec in forms that every target takes: TensorRT for RTX's own builder and OpenVINO take what it is lowered to."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.errors import InputError
from edgemm.export.lower_cuda import lower_ort_cuda
from edgemm.export.lower_tensorrt import lower_tensorrt, refusal
from edgemm.model.checkpoint import weights_hash
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import Layer, Spec
from edgemm.verify.components import example_inputs
from tests.engines.tiny_engines import build_component, needs_rtx

QUANTIZED = ("transformer", "conditioner", "denoiser")
NO_METHOD = ""  # the graphs here are traced once, from the model as it was before any smoothing


@pytest.fixture(scope="module")
def specs(model, checkpoint_path) -> dict[str, Spec]:
    known = (checkpoint_path.name, weights_hash(checkpoint_path))
    return {
        text: quantize(
            copy.deepcopy(model), QuantizeOptions(text, "int8", NO_METHOD, portable=True, steps=2), checkpoint=known
        )
        for text in ("int4", "w8a8")
    }


@pytest.fixture(scope="module")
def bundles(specs, export, tmp_path_factory) -> dict[str, Bundle]:
    """Export's own gate runs every graph, QDQ and all, on ONNX Runtime."""
    folder = tmp_path_factory.mktemp("quantized")
    opened = {}
    for text, spec in specs.items():
        spec.save(folder / text)
        opened[text] = open_bundle(export(folder / f"{text}.bundle", target="rtx", quant=folder / text))
    return opened


def test_precision_is_in_the_graph(bundles):
    """Codes lie [k, n]; every zero-point is there, typed and 0; all scales are float16."""
    for text, kind in (("int4", TensorProto.INT4), ("w8a8", TensorProto.INT8)):
        variant = bundles[text].manifest.variant("transformer", "rtx")
        graph = onnx.load(str(bundles[text].path / variant.graph)).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        rounding = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert all(len(node.input) == 3 for node in rounding)
        assert {tensors[node.input[1]].data_type for node in rounding} == {TensorProto.FLOAT16}
        assert not any(onnx.numpy_helper.to_array(tensors[node.input[2]]).astype(int).any() for node in rounding)
        codes = [tensors[n.input[0]] for n in rounding if n.op_type == "DequantizeLinear" and n.input[0] in tensors]
        assert kind in {tensor.data_type for tensor in codes}
        assert len(codes) == 14, "every product but the head"


@needs_rtx
@pytest.mark.parametrize(("text", "component"), [("int4", "transformer"), ("w8a8", "denoiser")])
def test_tensorrt_for_rtx_builds_it_for_sm_86(bundles, text, component, tmp_path):
    layers = build_component(bundles[text], component, "8.6", tmp_path)
    assert layers["DEQUANTIZE"] >= 8


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("compute_capability", ["8.6", "8.9"])
@pytest.mark.parametrize("component", QUANTIZED)
@pytest.mark.parametrize("text", ["int4", "w8a8"])
def test_tensorrt_for_rtx_builds_every_component(bundles, text, component, compute_capability, tmp_path):
    assert build_component(bundles[text], component, compute_capability, tmp_path)["DEQUANTIZE"] >= 8


@pytest.mark.parametrize(
    ("layer", "construct"),
    [
        (Layer(8, activations="tensor"), "'tensor' activations (ranges found while running)"),
        (Layer(4, 64, symmetric=False), "zero-points other than 0"),
        (Layer(8, 32), "int8 weights in blocks of 32"),
        (Layer(4, 32), "int4 weights in blocks of 32 (it takes 64 or 128)"),
        (Layer(4, 64, activations="static"), "int4 weights beside int8 activations"),
    ],
)
def test_what_tensorrt_cannot_take_is_named(layer, construct):
    assert refusal(layer) == construct
    assert refusal(Layer(8, activations="static")) is refusal(Layer(4, 128)) is None


@pytest.mark.parametrize("lowering", ["tensorrt", "cuda"])
def test_a_spec_for_cpus_is_refused_with_layer_and_construct(references, graphs, specs, lowering):
    document = specs["w8a8"].document
    layers = {name: dataclasses.replace(layer, activations="tensor") for name, layer in document.layers.items()}
    spec = Spec(dataclasses.replace(document, layers=layers), specs["w8a8"].tensors)
    reference = references(graphs["denoiser"])
    with pytest.raises(InputError, match=r"denoiser\.\S+: \w+.* takes no 'tensor' activations"):
        if lowering == "tensorrt":
            lower_tensorrt("denoiser", reference, spec, "fp16", "standard-24", {"denoiser": {"t": 20}})
        else:
            lower_ort_cuda("denoiser", reference, spec, "fp16", {"denoiser": {"t": 20}})


def test_cuda_gets_float16_blocks(references, graphs, specs):
    lowered, precision = lower_ort_cuda(
        "transformer", references(graphs["transformer"]), specs["int4"], "fp16", {"transformer": {"T": 64}}
    )
    graph = ir.to_proto(lowered)
    blocks = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    assert precision == "int4" and len(blocks) == 14
    assert {tensors[node.input[2]].data_type for node in blocks} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("component", QUANTIZED)
@pytest.mark.parametrize("text", ["int4", "w8a8"])
def test_openvino_computes_what_the_swapped_torch_model_does(references, graphs, model, specs, text, component):
    openvino = pytest.importorskip("openvino")
    from edgemm.export.component_graphs import component_graphs

    lowered, _ = lower_tensorrt(component, references(graphs[component]), specs[text], "fp32", "portable-21", {})
    four_bits = any(value.dtype == ir.DataType.INT4 for value in lowered.graph.initializers.values())
    assert lowered.opset_imports[""] == (21 if four_bits else 20), "what TensorRT 10.3 promises, where it can be said"
    onnx.checker.check_model(ir.to_proto(lowered))
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}  # no rounding of its own
    compiled = core.compile_model(core.read_model(ir.to_proto(lowered).SerializeToString(), b""), "CPU", exact)
    inputs = example_inputs(model)[component]
    found = compiled({name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
    quantized = copy.deepcopy(model)
    swap(quantized, specs[text])
    twin = component_graphs(quantized)[component]
    answer = twin.module(*(inputs[spec.name] for spec in twin.inputs))
    wanted = {
        spec.name: tensor for spec, tensor in zip(twin.outputs, answer if isinstance(answer, tuple) else [answer])
    }
    main = {"transformer": "logits", "conditioner": "prompt_vector", "denoiser": "prediction"}[component]
    noise = np.square(found[main] - wanted[main].numpy()).mean() / float(torch.var(wanted[main]))
    assert 10 * np.log10(1 / noise) > 30, "a rounding may fall the other way"
