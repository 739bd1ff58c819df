"""`--precision fp8|nvfp4`: graphs mean what the spec says, NVIDIA's builder takes them, and older GPUs are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from benchmarks import rtx_build
from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.onnx_file import Outline
from edgemm.cli.main import main
from edgemm.device.gpu import missing_kernels
from edgemm.errors import InputError, UsageError
from edgemm.export.component_graphs import component_graphs
from edgemm.export.lower_cuda import lower_ort_cuda
from edgemm.export.lower_tensorrt import DYNAMIC_FP4, check_target, lower_tensorrt, refusal
from edgemm.export.passes.decompositions import fp4_decoded
from edgemm.export.schemes import read_schemes
from edgemm.export.specs import make_specs
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import Layer, Spec
from edgemm.verify.components import example_inputs
from tests.engines.tiny_engines import build_component, needs_rtx
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import rewritten
from tests.heard import hearing

pytestmark = needs_opset_24

PRECISIONS = ("fp8", "nvfp4")  # nvfp4-weights differs in its inputs alone
DEPTH = 2
FP8, FP4 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1


@pytest.fixture(scope="module")
def specs(model) -> dict[str, Spec]:
    """What export makes of the same words."""
    return {word: make_specs(model, read_schemes("rtx", word))["rtx"] for word in (*PRECISIONS, "nvfp4-weights")}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def bundles(export, tmp_path_factory, lines) -> dict[str, Bundle]:
    """Export's own gate runs every graph and every loop."""
    folder = tmp_path_factory.mktemp("floats")
    with hearing(lines):
        return {
            word: open_bundle(export(folder / f"{word}.bundle", target="rtx,jetson-thor", precision=word))
            for word in PRECISIONS
        }


def graph(bundle: Bundle, component: str) -> onnx.GraphProto:
    variant = bundle.manifest.variant(component, "rtx")
    assert variant == bundle.manifest.variant(component, "jetson-thor"), "both read one graph"
    return onnx.load(str(bundle.path / variant.graph)).graph


def dequantized(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Layer -> its weight [k, n], as ONNX and ml_dtypes read the graph."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    scales: dict[str, np.ndarray] = {}
    found = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            codes, scale = (
                numpy_helper.to_array(tensors[name]).astype(np.float32) if name in tensors else scales[name]
                for name in node.input[:2]
            )
            if tensors[node.input[0]].data_type == FP4:
                scale = np.repeat(scale, 16, axis=0)
            if node.input[0].endswith(".scales"):
                scales[node.output[0]] = codes * scale
            else:
                found[node.input[0].removesuffix(".codes")] = codes * scale
    return found


@pytest.mark.parametrize("component", ["transformer", "conditioner", "denoiser"])
@pytest.mark.parametrize("word", PRECISIONS)
def test_the_graphs_weights_are_the_specs(bundles, specs, word, component):
    found = dequantized(graph(bundles[word], component))
    layers = {name for name, layer in specs[word].document.layers.items() if layer.bits}
    assert found.keys() == {name for name in layers if name.startswith(component)} and found
    for name, weight in found.items():
        close = 0 if specs[word].layer(name).form == word or component == "denoiser" else 2**-11  # scales of int8
        np.testing.assert_allclose(weight, specs[word].dequantized(name).numpy().T, rtol=close, atol=0)


def test_types_are_those_that_the_parser_reads(bundles):
    """Every zero-point typed and 0; NVFP4's scales float8 in blocks of 16, and the scale of those float32."""
    for word in PRECISIONS:
        for component in ("transformer", "denoiser"):
            inner = graph(bundles[word], component)
            tensors = {tensor.name: tensor for tensor in inner.initializer}
            for node in inner.node:
                if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
                    zero = tensors[node.input[2]]
                    assert zero.data_type in (FP8, FP4, TensorProto.INT8) and not zero.raw_data.strip(b"\0")
            acts = [node for node in inner.node if node.op_type == "QuantizeLinear"]
            assert bool(acts) == (word == "fp8" or component == "denoiser")
            assert {tensors[node.input[1]].data_type for node in acts} <= {TensorProto.FLOAT16}
    inner = graph(bundles["nvfp4"], "transformer")
    tensors = {tensor.name: tensor for tensor in inner.initializer}
    dynamic = [node for node in inner.node if node.op_type == DYNAMIC_FP4]
    assert {node.domain for node in dynamic} == {"trt"} and dynamic
    assert {tensors[node.input[1]].data_type for node in dynamic} == {TensorProto.FLOAT}
    untyped = [node for node in inner.node if node.op_type == "DequantizeLinear" and len(node.input) == 2]
    assert {node.input[0] for node in untyped} == {node.output[0] for node in dynamic}, "scales known while it runs"
    blocks = [
        a.i
        for node in inner.node
        if node.op_type == "DequantizeLinear"
        for a in node.attribute
        if a.name == "block_size"
    ]
    wholes = [tensor for tensor in inner.initializer if tensor.name.endswith(".whole")]
    assert set(blocks) == {16} and len(wholes) == len(blocks) - len(dynamic)
    assert {tensor.data_type for tensor in wholes} == {TensorProto.FLOAT}


def test_precisions_and_comparisons_are_told(bundles, lines):
    expected = {"fp8": ("fp8", "fp8"), "nvfp4": ("nvfp4", "fp8")}
    for word, (text, draw) in expected.items():
        chosen = {name: bundles[word].manifest.variant(name, "rtx").precision for name in ("transformer", "denoiser")}
        assert chosen == {"transformer": text, "denoiser": draw}
        assert main(["verify", str(bundles[word].path)]) == 0
    judged = [line for line in lines if line.startswith("-[") and "not judged" not in line]
    assert judged and all(line.startswith("-[✓]") for line in judged)
    loops = [line for line in lines if "loop" in line and "SSIM" not in line]
    assert len(loops) == 5 * len(PRECISIONS), "both targets share every graph"


def test_what_the_judge_decodes_is_what_the_spec_says(bundles, specs):
    """ONNX Runtime's CPU has no FP4: the comparison runs this graph."""
    variant = bundles["nvfp4"].manifest.variant("transformer", "rtx")
    model = onnx.load(str(bundles["nvfp4"].path / variant.graph))
    before = dequantized(model.graph)
    assert rewritten(fp4_decoded, model) and not any(tensor.data_type == FP4 for tensor in model.graph.initializer)
    constants = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    for name, layer in specs["nvfp4"].document.layers.items():
        if layer.form == "nvfp4":
            wanted = before[name]
            assert any(array.shape == wanted.shape and (array == wanted).all() for array in constants), name


@pytest.mark.parametrize(
    ("word", "component", "least_db"),
    [
        ("fp8", "denoiser", 25),
        ("fp8", "transformer", 25),
        ("nvfp4", "transformer", 12),
        ("nvfp4-weights", "transformer", 60),
    ],
)
def test_the_graph_computes_what_the_swapped_torch_model_does(
    references, graphs, model, specs, word, component, least_db
):
    """In float32, so that no other rounding is in the way; a number that falls the other way is a step of an eighth, in
    FP4 of a third, and carries on.  One rounding alone is compared number for number: passes/test_fp4_decoded.py."""
    sizes: dict[str, dict[str, int]] = {}
    lowered, _ = lower_tensorrt(component, references(graphs[component]), specs[word], "fp32", "standard-24", sizes)
    assert fp4_decoded(lowered) == word.startswith("nvfp4")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # else it rounds inputs itself
    session = onnxruntime.InferenceSession(ir.to_proto(lowered).SerializeToString(), options, ["CPUExecutionProvider"])
    inputs = example_inputs(model)[component]
    quantized = copy.deepcopy(model)
    swap(quantized, specs[word])
    twin = component_graphs(quantized)[component]
    answer = twin.module(*(inputs[spec.name] for spec in twin.inputs))
    main = {"transformer": "logits", "denoiser": "prediction"}[component]
    wanted = dict(zip((spec.name for spec in twin.outputs), answer if isinstance(answer, tuple) else [answer]))[main]
    (found,) = session.run([main], {name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
    noise = np.square(found - wanted.numpy()).mean() / float(torch.var(wanted))
    assert 10 * np.log10(1 / noise) > least_db


@needs_rtx
@pytest.mark.parametrize(("word", "compute_capability"), [("fp8", "8.9"), ("nvfp4", "12.0")])
def test_nvidias_builder_takes_the_transformer(bundles, word, compute_capability, tmp_path):
    inner = graph(bundles[word], "transformer")
    nodes = Counter(node.op_type for node in inner.node)
    layers = build_component(bundles[word], "transformer", compute_capability, tmp_path)
    assert layers["ATTENTION_INPUT"] == DEPTH
    assert (layers["DEQUANTIZE"], layers.get("QUANTIZE", 0)) == (nodes["DequantizeLinear"], nodes["QuantizeLinear"])
    assert layers.get("DYNAMIC_QUANTIZE", 0) == nodes[DYNAMIC_FP4] == (3 * DEPTH if word == "nvfp4" else 0)


@needs_rtx
@pytest.mark.slow
def test_nvidias_builder_takes_every_component(bundles, tmp_path, capsys, monkeypatch):
    """It fails when a node falls back or is refused, or is counted less often than it is in the graph."""
    words = ["rtx_build.py", *(str(bundle.path) for bundle in bundles.values()), "--sm", "86,89,120"]
    monkeypatch.setattr("sys.argv", [*words, "--opt-level", "0", "--output", str(tmp_path / "x")])
    assert rtx_build.main() == 0, capsys.readouterr().out
    document = json.loads((tmp_path / "x").read_text())
    built = {(row["precision"], row["sm"]) for row in document["results"] if row["component"] == "transformer"}
    assert built == {("fp8", "8.9"), ("fp8", "12.0"), ("nvfp4", "12.0")} and len(document["passed_over"]) == 3


@needs_rtx
@pytest.mark.parametrize(
    ("word", "sm", "told"),
    [("fp8", "86", "is float8e4m3fn, which GPUs multiply from SM 8.9 on"), ("nvfp4", "89", "is float4e2m1, which")],
)
def test_a_gpu_without_such_kernels_is_refused_before_it_builds(bundles, word, sm, told, capsys, tmp_path):
    words = ["build", str(bundles[word].path), "--target", "rtx", "--sm", sm, "--cache", str(tmp_path)]
    assert main(words) == 3
    line = capsys.readouterr().err
    assert "transformer" in line and f"SM {sm[0]}.{sm[1]} has no kernels for it" in line and told in line
    assert not list(tmp_path.iterdir())


def test_which_gpu_multiplies_what():
    outline = Outline(types={"a": "float8e4m3fn", "b": "float4e2m1"}, weights={"a", "b"})
    assert [missing_kernels(outline, sm) is None for sm in ("8.6", "8.7", "8.9", "9.0", "11.0", "12.0")] == [
        False, False, False, False, True, True
    ]  # fmt: skip
    eights = dataclasses.replace(outline, weights={"a"})
    assert [missing_kernels(eights, sm) is None for sm in ("8.7", "8.9", "9.0")] == [False, True, True]


@pytest.mark.parametrize("target", ["cpu", "cuda", "jetson-orin", "jetson-orin-jp6"])
@pytest.mark.parametrize("word", PRECISIONS)
def test_a_target_without_such_kernels_is_refused_by_name(target, word):
    with pytest.raises(UsageError, match=rf"'{word}' is none of what target {target} has: .*no kernels for {word}"):
        read_schemes(target, word)


@pytest.mark.parametrize("target", ["cpu", "cuda", "jetson-orin", "rtx,jetson-orin-jp6"])
def test_a_spec_with_such_weights_is_refused_with_its_layer(export, specs, checkpoint_path, target, tmp_path):
    from edgemm.model.checkpoint import weights_hash

    document = dataclasses.replace(specs["nvfp4"].document, checkpoint_sha256=weights_hash(checkpoint_path))
    Spec(document, specs["nvfp4"].tensors).save(tmp_path / "spec")
    last = target.rpartition(",")[2]
    with pytest.raises(InputError, match=rf"transformer\.\S+: target {last} has no kernels for (fp8|nvfp4) weights"):
        export(tmp_path / "x.bundle", target=target, quant=tmp_path / "spec")
    assert not (tmp_path / "x.bundle").exists()


def test_onnx_runtime_cuda_refuses_it_too(references, graphs, specs):
    with pytest.raises(InputError, match=r"takes no (fp8|nvfp4) weights|takes no 'fp8' activations"):
        lower_ort_cuda("denoiser", references(graphs["denoiser"]), specs["nvfp4"], "fp16", {"denoiser": {"t": 20}})


def test_weights_alone_are_for_the_builder_that_keeps_them(specs):
    """TensorRT is said to widen such weights without a word."""
    layers = {"transformer.x": Layer(4, 16, form="nvfp4")}
    spec = Spec(dataclasses.replace(specs["nvfp4"].document, layers=layers), {})
    check_target(spec, "rtx")
    with pytest.raises(
        InputError, match="jetson-thor has no kernels for nvfp4 weights beside float16 inputs, only: rtx"
    ):
        check_target(spec, "jetson-thor")


@pytest.mark.parametrize(
    ("layer", "construct"),
    [
        (Layer(8, form="fp8", activations="static"), "fp8 weights beside 'static' activations"),
        (Layer(4, 16, form="nvfp4", activations="fp8"), "nvfp4 weights beside 'fp8' activations"),
        (Layer(8, activations="fp8"), "int8 weights beside 'fp8' activations"),
    ],
)
def test_what_tensorrt_cannot_take_is_named(layer, construct):
    assert refusal(layer) == construct
    assert refusal(Layer(8, form="fp8", activations="fp8")) is refusal(Layer(4, 16, form="nvfp4")) is None
