"""Smoothing by the shipped text: the model says the same, and only what bears 8 bits of inputs gets one term."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from edgemm import progress
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from edgemm.families.table import load_family
from edgemm.families.text_smoothing import smooth_by_text
from edgemm.model.kept_weights import widened
from edgemm.quantize.simulated import rounded
from edgemm.verify import components
from edgemm.verify import export_foreign as exporting
from edgemm.verify.parity import Comparison
from tests.families.tiny.folders import write_folder

LOUD = 5  # a channel that the norms of layers make large, as trained models have some
Q, GATE, DOWN = "layers.0.self_attn.q_proj", "layers.0.mlp.gate_proj", "layers.{}.mlp.down_proj"


def opened(folder):
    found = find_foreign(folder)
    family = load_family(found)
    checkpoint = open_checkpoint(found, family)
    return checkpoint, family.parts(checkpoint)


@pytest.fixture
def folder(tmp_path):
    """Norms make one channel large; one number that layer 1's down-projection reads blinds 8 bits to all others."""
    path = write_folder("llama", tmp_path / "checkpoint", num_hidden_layers=3)
    library = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        for layer in library.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[LOUD] *= 60
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.weight[:, LOUD] /= 60
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight[:, LOUD] /= 60
        for layer in library.model.layers[::2]:
            layer.mlp.down_proj.weight /= 30
        library.model.layers[1].mlp.up_proj.weight[0] *= 300
        library.model.layers[1].mlp.down_proj.weight[:, 0] /= 300
    library.save_pretrained(path)
    return path


def logits_of(checkpoint) -> torch.Tensor:
    return checkpoint.model(torch.arange(40)[None]).logits.detach()


def numbers_of(checkpoint) -> dict[str, torch.Tensor]:
    return {name: widened(parameter.data).clone() for name, parameter in checkpoint.model.named_parameters()}


def test_what_is_smoothed_says_the_same_and_is_put_back_bit_for_bit(folder):
    library = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = library(torch.arange(40)[None]).logits.detach()
    checkpoint, parts = opened(folder)
    before = numbers_of(checkpoint)
    smoothed = smooth_by_text(parts, checkpoint.tokenizer)
    after = numbers_of(checkpoint)
    changed = {
        name.rpartition(".")[0].rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {f"{part}_proj" for part in ("q", "k", "v", "gate", "up")} | {
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert (logits_of(checkpoint) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    smoothed.undo()
    assert all(torch.equal(before[name], numbers) for name, numbers in numbers_of(checkpoint).items())


def test_only_what_bears_8_bits_has_one_term(folder):
    checkpoint, parts = opened(folder)
    one_term = smooth_by_text(parts, checkpoint.tokenizer).one_term
    assert {f"transformer.{Q}", f"transformer.{GATE}", f"transformer.{DOWN.format(0)}"} <= one_term
    assert f"transformer.{DOWN.format(1)}" not in one_term


def test_smoothed_inputs_lose_less_to_8_bits(folder):
    """Signal to noise of what the library's own layers give for the tokens of no calibration text."""

    def noise_of(checkpoint) -> dict[str, float]:
        found = {}

        def see(part, args, name):
            x, weight = args[0], widened(part.weight.data)
            y = x @ weight.T
            found[name] = float(((rounded(x, "token") @ weight.T - y).square().sum() / y.square().sum()).detach())

        for name in (Q, GATE):
            checkpoint.model.model.get_submodule(name).register_forward_pre_hook(lambda p, a, n=name: see(p, a, n))
        logits_of(checkpoint)
        return found

    plain, _ = opened(folder)
    checkpoint, parts = opened(folder)
    smooth_by_text(parts, checkpoint.tokenizer)
    before, after = noise_of(plain), noise_of(checkpoint)
    assert all(after[name] < before[name] / 4 for name in (Q, GATE))


def test_what_another_component_uses_stays_as_it_is(folder):
    checkpoint, parts = opened(folder)
    before, shared = numbers_of(checkpoint), parts.graphs["transformer"]
    layer = torch.nn.ModuleDict({"layer": checkpoint.model.model.layers[0]})
    graphs = {**parts.graphs, "conditioner": dataclasses.replace(shared, name="conditioner", module=layer)}
    one_term = smooth_by_text(dataclasses.replace(parts, graphs=graphs), checkpoint.tokenizer).one_term
    after = numbers_of(checkpoint)
    first = [name for name in before if ".layers.0." in name]
    assert all(torch.equal(before[name], after[name]) for name in first)
    assert f"transformer.{Q}" not in one_term and f"transformer.{Q.replace('0', '2')}" in one_term


def test_what_only_pictures_make_large_is_smoothed_too(tmp_path):
    place = write_folder("llava", tmp_path / "checkpoint")
    found = []
    for times in (1, 1000):
        checkpoint, parts = opened(place)
        reads = parts.inputs["transformer"]
        pictures = reads["image_tokens"].clone()
        pictures[..., LOUD] *= times
        inputs = {**parts.inputs, "transformer": {**reads, "image_tokens": pictures}}
        norm = parts.graphs["transformer"].module.get_submodule("layers.0.input_layernorm")
        before = norm.weight.clone()
        smooth_by_text(dataclasses.replace(parts, inputs=inputs), checkpoint.tokenizer)
        found.append(before / norm.weight.detach())
    assert found[1][LOUD] >= 2 * found[0][LOUD]


def test_a_model_that_draws_is_left_as_it_is(tmp_path):
    checkpoint, parts = opened(write_folder("emu3", tmp_path / "checkpoint"))
    assert parts.image_tokens is not None
    before = numbers_of(checkpoint)
    assert smooth_by_text(parts, checkpoint.tokenizer).one_term == frozenset()
    assert all(torch.equal(before[name], numbers) for name, numbers in numbers_of(checkpoint).items())


def test_the_gate_looks_at_eighteen_tokens_in_one_figure(tmp_path, monkeypatch):
    """Two rows of a prompt, the wanted token of each and eight more: a verdict on two tokens alone is half luck."""
    folder, seen = write_folder("llama", tmp_path / "checkpoint"), []
    compare = components.compare_arrays

    def noted(what, precision, found, wanted):
        seen.append((what, found, wanted))
        return compare(what, precision, found, wanted)

    monkeypatch.setattr(components, "compare_arrays", noted)
    exporting.export_foreign(find_foreign(folder), tmp_path / "made.bundle", precision="int8")
    ((_, found, wanted),) = [one for one in seen if one[0].startswith("transformer")]
    vocabulary = LlamaForCausalLM.from_pretrained(folder).config.vocab_size
    assert found[0].shape == wanted[0].shape == (2, 9, vocabulary) and len(found) == 1 + 2 * 2
    for rows in wanted[0]:
        assert len(np.unique(rows, axis=0)) >= 8  # the wanted token may be one of the eight


def test_what_does_not_pass_smoothed_is_exported_in_two_terms(tmp_path, monkeypatch):
    folder = write_folder("llama", tmp_path / "checkpoint")
    judged, lines, asked = [], [], []
    compare, specs_of = exporting.compare_component, exporting.make_specs_of_graphs

    def fails_once(*args):
        found: Comparison = compare(*args)
        judged.append(found)
        return dataclasses.replace(found, passed=len(judged) > 1)

    def noted(*args, **more):
        found = specs_of(*args, **more)
        layers = found["cpu"].document.layers
        asked.append(layers["transformer.layers.0.self_attn.q_proj"].activations)
        return found

    monkeypatch.setattr(exporting, "compare_component", fails_once)
    monkeypatch.setattr(exporting, "make_specs_of_graphs", noted)
    monkeypatch.setattr(progress, "line", lines.append)
    exporting.export_foreign(find_foreign(folder), tmp_path / "made.bundle", precision="int8")
    assert asked == ["token", "token16"]
    assert sum("in two terms" in line for line in lines) == 1
