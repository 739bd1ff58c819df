"""Learned routing in a bundle: ONNX Runtime's MoE and QMoE, and static products for NVIDIA's builder."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.components import TensorSpec
from edgemm.bundle.onnx_file import read_outline
from edgemm.cli.inspect import _experts
from edgemm.errors import MissingError
from edgemm.estimate.graph_costs import read_graph_costs
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.passes.experts_fused import experts_fused
from edgemm.export.passes.rewriting import CONTRIB, nodes_of
from edgemm.model import checkpoint
from edgemm.model.config import MixtureConfig
from edgemm.model.designs import variant
from edgemm.model.feed_forward import Mixture
from edgemm.runtimes.backend import ort_backend
from edgemm.runtimes.backend.engine import GraphFiles, plan_threads
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano
from tests.traced import traced

pytestmark = needs_opset_24
W, H, E = 64, 32, 4
SPECS = (TensorSpec("x", "float32", ("b", "s", W)), TensorSpec("seen", "bool", ("b", "s")))


def made_and_traced(top, **more):
    torch.manual_seed(0)
    mixture = Mixture(W, MixtureConfig(E, top, H, **more)).requires_grad_(False)
    mixture.router.mul_(4)
    graph = ComponentGraph("transformer", mixture, SPECS, (TensorSpec("y", "float32", ("b", "s", W)),))
    return mixture, traced(graph)


def run(model, x, seen):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"x": x.numpy(), "seen": seen.numpy()}
    return session.run(None, {node.name: given[node.name] for node in session.get_inputs()})[0]


@pytest.mark.parametrize(("top", "more"), [(1, {}), (2, {}), (2, {"shared": 16}), (1, {"by_modality": True})])
@torch.no_grad()
def test_the_operator_gives_what_torch_gives(top, more):
    mixture, model = made_and_traced(top, **more)
    x, seen = torch.randn(2, 9, W), torch.rand(2, 9) < 0.5
    wanted = mixture(x, seen)
    np.testing.assert_allclose(run(model, x, seen), wanted, atol=2e-6)  # the static form
    assert experts_fused(model) and len(nodes_of(model, "MoE", CONTRIB)) == 1 and not nodes_of(model, "TopK")
    np.testing.assert_allclose(run(model, x, seen), wanted, atol=2e-6)


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_rounded_experts_give_what_torch_gives_with_rounded_weights(top, bits):
    mixture, model = made_and_traced(top)
    assert experts_fused(model, bits) and nodes_of(model, "QMoE", CONTRIB)
    most = 2 ** (bits - 1) - 1
    for weight in (mixture.gate_up_proj, mixture.down_proj):  # (e, in, out): a scale an output channel, or 32 inputs
        blocks = weight.unflatten(1, (-1, 32 if bits == 4 else weight.shape[1]))
        scales = blocks.abs().amax(2, keepdim=True) / most
        weight.copy_(((blocks / scales).round() * scales).flatten(1, 2))
    x, seen = torch.randn(2, 9, W), torch.zeros(2, 9, dtype=torch.bool)
    np.testing.assert_allclose(run(model, x, seen), mixture(x, seen), atol=5e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = variant(variant(nano(), mixture="4-top-2"), mixture="choice-8")
    assert config.transformer.mixture and config.denoiser.mixture
    path = tmp_path_factory.mktemp("mixed") / "mixed"
    checkpoint.save(random_nano(config), path, torch.float32)
    return path


@pytest.fixture(scope="module")
def exported(made):
    """Of a precision, made once."""

    @cache
    def of(precision):
        export_bundle(made, made.parent / f"{precision}.bundle", precision=precision)
        return made.parent / f"{precision}.bundle"

    return of


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_bundle_of_experts_says_and_draws_what_torch_does(made, exported, precision):
    path = exported(precision)
    model, variants = checkpoint.load(made), open_bundle(path).manifest.components["transformer"].variants
    (graph,) = (path / one.graph for one in variants.values())
    kinds = {node.op_type for node in read_outline(graph).nodes}
    assert ("MoE" if precision == "fp32" else "QMoE") in kinds and "TopK" not in kinds
    with edgemm.load(path, device="cpu", threads=1) as runtime:
        drawn = runtime.generate_image("a red heart", num_inference_steps=2, guidance_scale=1)
        assert np.isfinite(drawn.pixels).all()
        shown = "\n".join(_experts(open_bundle(path)))
        costs = read_graph_costs(graph, graph.stat().st_size + graph.with_suffix(".onnx.data").stat().st_size)
        experts = sum(
            p.numel() for name, p in model.named_parameters() if name.endswith(("gate_up_proj", "mlp.down_proj"))
        )
        idle = experts / 2 * (4 if precision == "fp32" else 1)  # two of four
        assert idle <= costs.idle_bytes <= 1.1 * idle and "a token reads" in shown  # scales are above
        said = runtime.generate_text("What?", max_new_tokens=4, ignore_eos=True).token_ids
        if precision == "fp32":
            assert list(said) == model.generate("What?", max_new_tokens=4, stop=False)[0]


def test_an_onnx_runtime_that_computes_another_thing_is_refused_by_name(exported, monkeypatch):
    path = exported("fp32")
    variant = open_bundle(path).manifest.variant("transformer", "cpu")
    files = GraphFiles("transformer", path / variant.graph, path / variant.data if variant.data else None, variant)
    monkeypatch.setattr(ort_backend.ort, "__version__", "1.27.1")
    with pytest.raises(MissingError, match=r"computes another SwiGLU before 1.28, and this is 1.27.1: pip install"):
        ort_backend.open_session(files, "CPUExecutionProvider", plan_threads(1))


@pytest.mark.slow
@needs_rtx
def test_static_products_build_for_an_rtx_device_that_is_not_here(made, tmp_path):
    export_bundle(made, tmp_path / "made.bundle", target="rtx")
    components = {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == components
