"""The traced modules are the model, and their graphs are the modules, in every shape that a runtime may ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.components import COMPONENTS, OPTIONAL, pattern
from edgemm.bundle.manifest import Manifest
from edgemm.export.component_graphs import component_graphs
from edgemm.model.config import DenoiserConfig
from edgemm.model.prompts import read_prompt
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.verify.components import example_inputs
from tests.export.nano import nano, needs_opset_24, open_graph, random_nano, run_graph

TOLERANCE = 1e-4  # of the largest value: float32 sums in another order
PROMPTS = ["a red heart", "x"]


def call(graph, inputs):
    """The module's outputs, as arrays."""
    with torch.no_grad():
        answer = graph.module(*(inputs[spec.name] for spec in graph.inputs))
    return [np.asarray(tensor) for tensor in ((answer,) if isinstance(answer, torch.Tensor) else answer)]


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1e-3, np.abs(b.astype(np.float32)).max()))


# The modules are the model


def test_the_transformer_graph_is_the_transformer(model, graphs):
    inputs = example_inputs(model)["transformer"]
    layers = range(model.config.transformer.depth)
    logits, *present = call(graphs["transformer"], inputs)
    x = model.transformer.embed(inputs["input_ids"], inputs["image_tokens"], inputs["image_index"])
    past = [(inputs[f"past_key.{layer}"], inputs[f"past_value.{layer}"]) for layer in layers]
    hidden, cached = model.transformer(x, inputs["attention_limit"], past, inputs["write_index"])
    wanted = model.transformer.logits(hidden)[torch.arange(3), inputs["logits_index"]]
    assert_close([logits, *present], [wanted.numpy(), *(np.asarray(t) for pair in cached for t in pair)])


@pytest.mark.parametrize("layers", [(0, 1), (1, 0), (1, 1)])
def test_denoiser_layers_may_read_any_layer_and_the_same_one_twice(layers):
    expert = DenoiserConfig(
        width=64, depth=2, heads=2, ffn_width=128, prefix_layers=layers, prompt_width=32, layout_width=16
    )
    model = random_nano(nano(denoiser=expert))
    graph = component_graphs(model)["conditioner"]
    assert [spec.name for spec in graph.inputs][:-2] == [
        f"past_{p}.{n}" for n in dict.fromkeys(layers) for p in ("key", "value")
    ]
    cached, mask, length = model.prompt_cache(PROMPTS)
    inputs = {"prompt_mask": mask, "prefix_length": length}
    for layer, (keys, values) in zip(layers, cached):
        inputs |= {f"past_key.{layer}": keys, f"past_value.{layer}": values}
    wanted = model.prefix(PROMPTS)
    found = dict(zip([spec.name for spec in graph.outputs], call(graph, inputs)))
    assert np.array_equal(found["prompt_vector"], wanted.prompt_vector)
    for index in range(2):
        assert np.array_equal(found[f"prefix_key.{index}"], wanted.keys[index])
        assert np.array_equal(found[f"prefix_value.{index}"], wanted.values[index])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_without_a_layout_hands_none_over():
    expert = DenoiserConfig(
        width=64, depth=2, heads=2, ffn_width=128, prefix_layers=(0, 1), prompt_width=32, layout_width=0
    )
    model = random_nano(nano(denoiser=expert))
    made, inputs = component_graphs(model), example_inputs(model)
    names = [
        spec.name
        for name in ("conditioner", "denoiser")
        for side in (made[name].inputs, made[name].outputs)
        for spec in side
    ]
    assert "layout" not in names
    (found,) = call(made["denoiser"], inputs["denoiser"])
    wanted = model.denoiser(
        inputs["denoiser"]["noisy_tokens"],
        inputs["denoiser"]["time"],
        model.prefix(("red heart", "dog face, noto style", "three small boats on a lake")),
    )
    assert np.allclose(found, wanted, atol=1e-6)


def test_every_component_is_what_the_contract_says(graphs):
    assert list(graphs) == ["image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"]
    for name, graph in graphs.items():
        for allowed, specs in zip(COMPONENTS[name], (graph.inputs, graph.outputs), strict=True):
            found = {pattern(spec.name): (spec.dtype, len(spec.shape)) for spec in specs}
            wanted = {stem: (dtype, rank or 3) for stem, (dtype, rank) in allowed.items() if stem in found}
            assert found == wanted
            assert not allowed.keys() - found.keys() - set(OPTIONAL.get(name, ()))


def test_examples_have_shapes_of_their_own(model, graphs):
    """Else a size that the tracer took for a constant would go unseen."""
    from edgemm.export.trace import SIZES

    for name, inputs in example_inputs(model).items():
        for spec in graphs[name].inputs:
            assert inputs[spec.name].dtype == getattr(torch, spec.dtype)
            for entry, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
                assert size != SIZES[entry] if isinstance(entry, str) else size == entry, (spec, size)


# The graphs are the modules


@pytest.fixture(scope="module")
def sessions(bundles):
    """component -> session on its float graph."""
    manifest = Manifest.from_json((bundles["fp32"] / "manifest.json").read_text())
    return {name: open_graph(bundles["fp32"], manifest.variant(name, "cpu")) for name in manifest.components}


def random_inputs(graph, sizes, seed=0):
    """Any numbers for floats, zeros for the rest."""
    random = torch.Generator().manual_seed(seed)
    inputs = {}
    for spec in graph.inputs:
        shape = [sizes.get(entry, entry) for entry in spec.shape]
        zeros = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        inputs[spec.name] = torch.randn(shape, generator=random) if spec.dtype == "float32" else zeros
    return inputs


@needs_opset_24
@pytest.mark.parametrize(
    "sizes",
    [
        {"b": 1, "s": 1, "T": 1, "m": 1},
        {"b": 1, "s": 1, "T": 40, "m": 1},  # a step of decoding
        {"b": 1, "s": 17, "T": 17, "m": 12},  # the whole cache at once
        {"b": 3, "s": 1, "T": 23, "m": 2},
        {"b": 2, "s": 6, "T": 300, "m": 7},
    ],
    ids=str,
)
def test_transformer_graph(graphs, sessions, sizes):
    b, s, slots, rows = sizes["b"], sizes["s"], sizes["T"], sizes["m"]
    inputs = random_inputs(graphs["transformer"], sizes)
    inputs["input_ids"] = torch.arange(b * s).reshape(b, s) * 7 % 264
    inputs["image_index"] = torch.where(torch.arange(b * s).reshape(b, s) % 3 == 1, torch.arange(s) % rows, -1)
    inputs["write_index"] = torch.arange(b) * 5 % (slots - s + 1) * (s == 1 or b == 1)  # docs/bundle.md
    own = inputs["write_index"][:, None] + torch.arange(s)
    inputs["attention_limit"] = own - own % 2 + 1  # pairs that see one another
    inputs["attention_limit"].clamp_(max=own[:, -1:])
    inputs["logits_index"] = (s - 1 - torch.arange(b)) % s
    found, wanted = run_graph(sessions["transformer"], inputs), call(graphs["transformer"], inputs)
    for row, end in enumerate(own[:, -1] + 1):  # what a cache holds behind it is nobody's
        one, other = ([logits[row], *(cache[row, :, :end] for cache in caches)] for logits, *caches in (found, wanted))
        assert_close(one, other)


@needs_opset_24
@pytest.mark.parametrize(("b", "kept"), [(1, 1), (1, 16), (3, 40)])
def test_conditioner_graph(model, graphs, sessions, b, kept):
    skip = model.conditioner.skip
    inputs = random_inputs(graphs["conditioner"], {"b": b, "T": skip + kept})
    inputs["prefix_length"] = skip + torch.clamp(kept - 3 * torch.arange(b), min=1)
    inputs["prompt_mask"] = torch.zeros(b, skip + kept)
    inputs["prompt_mask"][:, skip : skip + kept // 2] = 1  # b=1, kept=1: the empty prompt
    assert_close(run_graph(sessions["conditioner"], inputs), call(graphs["conditioner"], inputs))


@needs_opset_24
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 16), (3, 40)])
def test_denoiser_graph(graphs, sessions, b, t):
    inputs = random_inputs(graphs["denoiser"], {"b": b, "t": t})
    inputs["time"] = torch.linspace(0, 0.98, b)
    inputs["prefix_mask"] = (
        torch.arange(t) < torch.clamp(t - 3 * torch.arange(b), min=0)[:, None]
    )  # a row may have none
    assert_close(run_graph(sessions["denoiser"], inputs), call(graphs["denoiser"], inputs))


@needs_opset_24
@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("name", ["image_encoder", "image_decoder"])
def test_picture_graphs(graphs, sessions, name, b):
    inputs = {key: value.abs().clamp(max=1) for key, value in random_inputs(graphs[name], {"b": b}).items()}
    assert_close(run_graph(sessions[name], inputs), call(graphs[name], inputs))


@needs_opset_24
def test_what_the_prefix_mask_hides_does_not_matter(graphs, sessions):
    inputs = random_inputs(graphs["denoiser"], {"b": 1, "t": 9})
    inputs["prefix_mask"] = torch.arange(9)[None] < 5
    (seen,) = run_graph(sessions["denoiser"], inputs)
    for name in inputs:
        if name.startswith(("prefix_key", "prefix_value")):
            inputs[name][:, :, 5:] = 1e3
    (again,) = run_graph(sessions["denoiser"], inputs)
    np.testing.assert_allclose(again, seen, atol=1e-6)


@needs_opset_24
@pytest.mark.parametrize("pictures", [0, 2])
def test_decoding_through_the_static_cache_equals_one_prefill(runtimes, model, pictures):
    """The buffers are bound as input and output at once, and grow on the way."""
    runtime, text = runtimes["fp32"], "Once upon a time a painter lived by the sea."
    prompt = chat_prompt(as_messages(text, [None] * pictures), runtime.manifest.loops.text, runtime.tokenizer)
    as_in_training = read_prompt(model.config, model.tokenizer, text, pictures)
    assert np.array_equal(prompt.input_ids, as_in_training.input_ids)
    assert np.array_equal(prompt.attention_limit, as_in_training.attention_limit)
    random = np.random.default_rng(0)
    rows = random.standard_normal((1, max(1, pictures * 4), 64), dtype=np.float32)
    whole = CachedTransformer(runtime._engines.get("transformer"), 512, block=64)
    wanted = whole.prefill(prompt, rows).copy()
    length = 40  # pictures stand before it
    first = type(prompt)(
        *(getattr(prompt, f)[:length] for f in ("input_ids", "image_index", "attention_limit", "users_own"))
    )
    stepped = CachedTransformer(runtime._engines.get("transformer"), 512, block=8)
    found = stepped.prefill(first, rows).copy()
    for token in prompt.input_ids[length:]:
        found = stepped.step(int(token))
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max())
    for name, buffer in whole.cache.buffers.items():
        used = whole.cache.used
        np.testing.assert_allclose(
            stepped.cache.buffers[name][:, :, :used], buffer[:, :, :used], atol=TOLERANCE * np.abs(buffer).max()
        )
