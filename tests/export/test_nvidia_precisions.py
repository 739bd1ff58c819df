"""`--precision int8|int4` for NVIDIA: what each target's graphs hold, run by ONNX Runtime's CPU, built by NVIDIA's own
builder."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto

from benchmarks import rtx_build
from benchmarks.uncompared_graphs import write_bundles
from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.cli.main import main
from edgemm.errors import InputError, UsageError
from edgemm.export.component_graphs import component_graphs
from edgemm.export.lower_tensorrt import lower_tensorrt
from edgemm.export.schemes import read_schemes
from edgemm.model import checkpoint
from edgemm.quantize.make import make_spec
from edgemm.quantize.simulated import weights_of
from edgemm.quantize.spec import Layer
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_component, needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano
from tests.heard import hearing
from tests.traced import traced

pytestmark = needs_opset_24

TARGETS = ("rtx", "jetson-orin-jp6", "cuda")
QUANTIZED = {"int8": {"transformer": "int8"}, "int4": {"transformer": "int4"}}
DEPTH = 2


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def bundles(export, tmp_path_factory, lines) -> dict[str, Bundle]:
    """Export's own gate runs every graph and every loop."""
    folder = tmp_path_factory.mktemp("precisions")
    with hearing(lines):
        return {
            precision: open_bundle(
                export(folder / f"{precision}.bundle", target=",".join(TARGETS), precision=precision)
            )
            for precision in QUANTIZED
        }


def graph(bundle: Bundle, component: str, target: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.path / bundle.manifest.variant(component, target).graph), load_external_data=False)


def codes(model: onnx.ModelProto) -> list[int]:
    """The types of the weights that are dequantized."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [kinds[n.input[0]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kinds]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_engines_get_qdq_and_onnx_runtime_its_own_blocks(bundles, precision):
    bundle = bundles[precision]
    for target in ("rtx", "jetson-orin-jp6"):
        transformer, denoiser = (graph(bundle, component, target) for component in ("transformer", "denoiser"))
        assert (TensorProto.INT4 in codes(transformer)) == (precision == "int4")
        assert set(codes(denoiser)) == {TensorProto.INT8}
        assert "QuantizeLinear" in {node.op_type for node in denoiser.graph.node}, "its inputs are int8 too"
        assert {opset.domain for opset in transformer.opset_import} == {""}
    cuda = graph(bundle, "transformer", "cuda")
    bits = [
        attr.i for n in cuda.graph.node if n.op_type == "MatMulNBits" for attr in n.attribute if attr.name == "bits"
    ]
    assert len(bits) == 7 * DEPTH and min(bits) == int(precision[-1])
    assert bundle.manifest.variant("transformer", "cuda").dialect == "standard-24+com.microsoft"
    assert bundle.manifest.variant("denoiser", "cuda").precision == "fp16"
    assert "Attention" in {node.op_type for node in graph(bundle, "denoiser", "cuda").graph.node}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_what_is_not_quantized_is_float16_and_dialects_share_their_weights(bundles, precision):
    bundle = bundles[precision]
    for component in ("transformer", "denoiser"):
        rtx, orin = (bundle.manifest.variant(component, target) for target in ("rtx", "jetson-orin-jp6"))
        assert rtx.graph != orin.graph and rtx.data == orin.data
        assert {s.dtype for s in rtx.inputs if s.name.startswith(("past_", "prefix_key"))} == {"float16"}
    assert bundle.manifest.variant("image_encoder", "rtx").precision == "fp16"


def test_every_loop_of_every_target_was_compared(bundles, lines):
    for target in TARGETS:
        told = [line for line in lines if line.startswith(("-[✓]", "-[ ]")) and f"{target}: " in line]
        passed = [line for line in told if "loop" in line and "SSIM" not in line]
        assert len(passed) == 5 * len(bundles), "three replies and two pictures a bundle"


@pytest.mark.parametrize("precision", QUANTIZED)
def test_verify_takes_every_target(bundles, precision):
    assert main(["verify", str(bundles[precision].path), "--no-parity"]) == 0


def test_ci_builds_the_graphs_that_export_writes(bundles, checkpoint_path, references, tmp_path, monkeypatch):
    monkeypatch.setattr("edgemm.export.trace.trace", references)
    for path in write_bundles(checkpoint_path, list(QUANTIZED), tmp_path):
        exported, written = (opened.manifest for opened in (bundles[path.stem], open_bundle(path)))
        assert not written.targets["rtx"].keys() ^ exported.targets["rtx"].keys()
        for component in written.targets["rtx"]:
            mine, its = (manifest.variant(component, "rtx") for manifest in (written, exported))
            assert written.files[mine.graph] == exported.files[its.graph], component
            assert not mine.data or written.files[mine.data] == exported.files[its.data], component


def test_without_the_builder_nothing_is_built_and_that_is_told(monkeypatch, capsys):
    monkeypatch.setattr(rtx_build, "installed_version", lambda package: None)
    for words, code in ((["--if-installed"], 0), ([], 4)):
        monkeypatch.setattr("sys.argv", ["rtx_build.py", "--checkpoint", "nowhere", *words])
        assert rtx_build.main() == code
        assert "nothing is built: tensorrt-rtx is not installed" in capsys.readouterr().out


@needs_rtx
def test_nvidias_builder_takes_every_component_and_recognises_every_node(
    bundles, checkpoint_path, references, tmp_path, capsys, monkeypatch
):
    """`make build-rtx` of a smaller checkpoint: it fails when a node falls back or is refused."""
    monkeypatch.setattr("edgemm.export.trace.trace", references)
    output = tmp_path / "rtx-build.json"
    words = ["rtx_build.py", "--checkpoint", str(checkpoint_path), "--precision", "int8,int4", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--sm", "86", "--opt-level", "0", "--output", str(output)])
    assert rtx_build.main() == 0
    document = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document and document["problems"] == []
    rows = {(row["component"], row["precision"]): row for row in document["results"]}
    assert len(rows) == 6 and len(document["results"]) == 2 * 5, "two transformers; what they share is built once"
    for precision in QUANTIZED:
        layers = rows["transformer", precision]["layers"]
        assert (layers["attention"], layers["dequantize"]) == (DEPTH, 7 * DEPTH)
        assert layers["cache update"] == layers["rotary"] == 2 * DEPTH
    assert rows["denoiser", "int8"]["layers"]["quantize"] >= 4 * DEPTH
    worse = {**rows["transformer", "int4"], "rung": "attention taken apart", "layers": {"attention": 1}}
    assert rtx_build.problems_of(bundles["int4"], worse)[:2] == [
        "transformer (int4) for SM 8.6 was built with attention taken apart",
        f"transformer (int4) for SM 8.6 has 1 layers of attention, expected {DEPTH}",
    ]


@needs_rtx
def test_a_node_that_falls_back_fails_the_build(checkpoint_path, references, capsys, monkeypatch):
    """TensorRT has no kernel for attention in float32: it is taken apart, the engine is built, and CI would say no."""
    monkeypatch.setattr("edgemm.export.trace.trace", references)
    words = ["rtx_build.py", "--checkpoint", str(checkpoint_path), "--precision", "fp32", "--sm", "86"]
    monkeypatch.setattr("sys.argv", [*words, "--opt-level", "0"])
    assert rtx_build.main() == 7
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[x]")]
    assert "[x] transformer (fp32) for SM 8.6 was built with attention taken apart" in told


def test_one_precision_a_target_and_the_cpus_own():
    cpu, rtx = read_schemes("cpu,rtx", "int8")
    assert cpu.quantize and rtx.quantize and (cpu.real, rtx.real) == ("fp32", "fp16")
    assert (cpu.quantize.portable, rtx.quantize.portable) == (False, True)
    with pytest.raises(UsageError, match="precision 'fp6' is none of what target rtx has: fp16, fp32, int8, int4, fp8"):
        read_schemes("rtx", "fp6")


@pytest.fixture(scope="module")
def odd_model():
    """A width of 160 behind its feed-forward layers, as 352 is in checkpoints/micro-shapes: no multiple of 64."""
    config = nano()
    denoiser = replace(config.denoiser, prefix_layers=(0, 0))  # layers that drawing reads have 8 bits anyway
    return random_nano(replace(config, transformer=replace(config.transformer, ffn_width=160), denoiser=denoiser))


@pytest.mark.slow
@needs_rtx
def test_nvidias_parser_takes_int4_of_widths_that_no_block_divides(odd_model, tmp_path):
    checkpoint.save(odd_model, tmp_path / "odd")
    export_bundle(tmp_path / "odd", tmp_path / "odd.bundle", target="rtx", precision="int4")
    bundle = open_bundle(tmp_path / "odd.bundle")
    assert build_component(bundle, "transformer", "8.6", tmp_path / "engines")
    assert set(codes(graph(bundle, "transformer", "rtx"))) == {TensorProto.INT4, TensorProto.INT8}


def test_a_spec_with_such_blocks_is_refused_with_both_numbers(odd_model):
    name = "transformer.layers.0.mlp.down_proj"
    spec = make_spec(weights_of(odd_model), {name: Layer(4, 64)})
    reference = traced(component_graphs(odd_model)["transformer"])
    with pytest.raises(InputError, match=f"{name}: TensorRT takes no blocks of 64 in a weight of 160 input channels"):
        lower_tensorrt("transformer", reference, spec, "fp32", "portable-21", {})
