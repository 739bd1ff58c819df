"""Keys and values in 8 bits: the graph rounds as the torch model does, and a whole bundle talks and draws on them."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.cli.main import main
from edgemm.errors import InputError
from edgemm.evaluate.metrics import psnr_db
from edgemm.export.component_graphs import component_graphs
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.passes.int8_cache import int8_cache
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import RoundedCache, swap
from edgemm.quantize.spec import Spec, read_spec
from edgemm.runtimes.schedule import initial_noise
from edgemm.verify.components import example_inputs
from tests.export.nano import left_behind, needs_opset_24, run_graph

pytestmark = needs_opset_24


@pytest.fixture(scope="module")
def spec(model) -> Spec:
    """Nothing but the cache."""
    return quantize(copy.deepcopy(model), QuantizeOptions("fp16", "fp16", "", cache="int8"))


@pytest.fixture(scope="module")
def rounded(model, spec):
    swapped = copy.deepcopy(model)
    swap(swapped, spec)
    return swapped


def test_a_spec_keeps_the_steps(spec, tmp_path):
    spec.save(tmp_path / "spec")
    found = read_spec(tmp_path / "spec")
    assert found.document.cache == "int8"
    assert {name: steps.shape for name, steps in found.cache_steps().items()} == {
        f"{part}.{layer}": (2, 16) for part in ("key", "value") for layer in (0, 1)
    }


def test_the_torch_model_is_off_by_half_a_step_at_most(model, spec, rounded):
    assert all(isinstance(layer.self_attn, RoundedCache) for layer in rounded.transformer.layers)
    prompts = ["red heart", "a dog"]
    (plain, *_), (coarse, *_) = model.prompt_cache(prompts), rounded.prompt_cache(prompts)
    last = model.config.denoiser.prefix_layers.index(0)  # its inputs were not rounded yet
    for part, one, other in zip(("key.0", "value.0"), plain[last], coarse[last], strict=True):
        step = torch.from_numpy(spec.cache_steps()[part])[:, None]
        assert 0 < ((one - other).abs() / step).max() <= 0.5001


@pytest.mark.parametrize("component", ["transformer", "conditioner"])
def test_the_graph_computes_what_the_torch_model_does(model, spec, rounded, references, graphs, component):
    """Codes on near-ties may fall the other way; what the cache holds is compared code by code."""
    steps = spec.cache_steps()
    lowered, precision = lower_ort_cpu(component, references(graphs[component]), spec)
    graph = ir.to_proto(lowered)
    assert precision == "fp32", "weights are as they were"
    inputs = {name: tensor.numpy() for name, tensor in example_inputs(rounded)[component].items()}
    wanted = _torch_answers(rounded, component, inputs)
    for name, array in inputs.items():
        if name.startswith("past_"):
            inputs[name] = np.rint(array / steps[name[5:]][:, None]).astype(np.int8)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = run_graph(session, inputs)
    names = [value.name for value in graph.graph.output]
    for name, one, other in zip(names, found, wanted, strict=True):
        if name.startswith("present_"):
            assert one.dtype == np.int8
            off = np.abs(one - np.rint(other / steps[name[8:]][:, None]))
            assert off.max() <= 1 and np.mean(off != 0) < 0.01, name
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-3 * np.abs(other).max(), err_msg=name)


@torch.no_grad()
def _torch_answers(model, component, inputs) -> list[np.ndarray]:
    """By the model itself: the module that gets traced goes around what `swap` put in."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if component == "conditioner":
        answer = component_graphs(model)[component].module(*given.values())
        return [tensor.numpy() for tensor in answer]
    past = [(given[f"past_key.{layer}"], given[f"past_value.{layer}"]) for layer in (0, 1)]
    x = model.transformer.embed(given["input_ids"], given["image_tokens"], given["image_index"])
    hidden, present = model.transformer(x, given["attention_limit"], past, given["write_index"])
    rows = hidden[torch.arange(len(hidden)), given["logits_index"]]
    return [tensor.numpy() for tensor in (model.transformer.logits(rows), *(t for pair in present for t in pair))]


@pytest.fixture(scope="module")
def bundle(export, tmp_path_factory):
    return export(tmp_path_factory.mktemp("cache") / "int8.bundle", precision="int8", cache="int8")


def test_a_bundle_passes_its_gate_and_its_cache_takes_a_quarter(bundle, model):
    manifest = open_bundle(bundle).manifest
    for component, side in (("transformer", "outputs"), ("transformer", "inputs"), ("conditioner", "inputs")):
        specs = getattr(manifest.variant(component, "cpu"), side)
        kinds = {spec.dtype for spec in specs if spec.name.startswith(("past_", "present_"))}
        assert kinds == {"int8"}, component
    shape = model.config.transformer
    with edgemm.load(bundle, device="cpu", threads=1) as runtime:
        assert runtime._text.conversation().cache.slot_bytes == 2 * shape.depth * shape.kv_heads * shape.head_width


def test_it_draws_as_torch_does_and_sessions_go_on(bundle, model):
    """Greedy replies flip on near-ties, so pictures are held against torch's, and replies against the same bundle's."""
    sampler, tokens = model.with_sampler(num_inference_steps=3), model.config.image_tokens
    noise = torch.from_numpy(initial_noise(3, tokens.token_count, tokens.token_width))[None]
    wanted = model.draw(["red heart"], noise, sampler)[0].numpy()
    with edgemm.load(bundle, device="cpu", threads=1) as runtime:
        drawn = runtime.generate_image("red heart", seed=3, num_inference_steps=3).image
        assert psnr_db(drawn.pixels, wanted) > 25
        session = runtime.session()
        first, forked = session.generate_text("Say it.", max_new_tokens=4).token_ids, session.fork()
        assert first == runtime.generate_text("Say it.", max_new_tokens=4).token_ids
        again = [one.generate_text("More.", max_new_tokens=4).token_ids for one in (session, forked)]
        assert again[0] == again[1]


def test_steps_that_are_missing_are_named(references, graphs):
    with pytest.raises(InputError, match=r"no steps for key\.0"):
        int8_cache(references(graphs["transformer"]), {})


def test_refusals(checkpoint_path, spec, tmp_path, capsys):
    spec.save(tmp_path / "spec")
    command = ["export", str(checkpoint_path), "--output", str(tmp_path / "x.bundle")]
    for words, message in (
        (["--cache", "int8"], "--cache int8 is for target cpu in --precision int8 or int4"),
        (["--cache", "int8", "--target", "rtx", "--precision", "int8"], "--cache int8 is for target cpu"),
        (["--cache", "int8", "--precision", "int8", "--adapters"], "without --adapters"),
    ):
        assert main([*command, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert left_behind(tmp_path) == ["spec"]
