"""A spec comes back from disk as it was, or is refused; in the torch model it does what it says."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from edgemm.errors import CheckFailedError, EdgemmError, InputError, UsageError
from edgemm.model.unified import Unified
from edgemm.quantize import layers as recipe
from edgemm.quantize.layers import layers_of
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.quantize.smoothing import fold, sites
from edgemm.quantize.spec import HEAD, JSON_FILE, TENSOR_FILE, Spec, read_spec
from tests.export.nano import random_nano
from tests.model.tiny import tokens_of


@pytest.fixture(scope="module")
def model() -> Unified:
    return random_nano()


@pytest.fixture(scope="module")
def spec(model) -> Spec:
    """Everything that a spec can hold: smoothing, a branch, static ranges."""
    return quantize(copy.deepcopy(model), QuantizeOptions("int4", "w4a8", "text=awq+gptq,draw=smoothquant+svd", rank=4))


@pytest.fixture(scope="module")
def split(model) -> Spec:
    """The embedding in two precisions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "FREQUENT", {4: 100, 8: 100})
        return quantize(copy.deepcopy(model), QuantizeOptions("int4", "fp16", ""))


def test_an_embedding_in_two_precisions_comes_back_and_is_swapped_in(model, split, tmp_path):
    split.save(tmp_path / "spec")
    found = read_spec(tmp_path / "spec")
    assert found.document == split.document and found.layer(HEAD).rows == 100
    swapped = copy.deepcopy(model)
    swap(swapped, found)
    weight, table = swapped.transformer.embed_tokens.weight, model.transformer.embed_tokens.weight
    fine, coarse = ((weight - table)[rows].abs().mean() for rows in (slice(0, 100), slice(100, None)))
    assert 0 < 8 * fine < coarse < 0.2 * table.abs().mean()


def answers(model: Unified) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([model.encode("What a curious feeling!")])
    hidden, _ = model.transformer(model.transformer.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    return model.transformer.logits(hidden), model.draw(["red heart", "dog"], tokens_of(model, 2))


def test_a_saved_spec_comes_back_as_it_was(spec, tmp_path):
    spec.save(tmp_path / "spec")
    found = read_spec(tmp_path / "spec")
    assert found.document == spec.document
    assert found.tensors.keys() == spec.tensors.keys()
    assert all(np.array_equal(array, spec.tensors[name]) for name, array in found.tensors.items())


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_smoothing_changes_no_answer(model, method):
    smoothed = copy.deepcopy(model)
    found = quantize(smoothed, QuantizeOptions("int8", "int8", method))
    assert len(found.document.smoothed) == 2 * 3 + 2 * 2, "three sites a transformer layer, two a denoiser block"
    for after, before in zip(answers(smoothed), answers(model), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_a_site_that_is_forgotten_would_be_noticed(model):
    broken = copy.deepcopy(model)
    site = sites(broken)["denoiser.blocks.0.norm_ffn"]
    fold(broken, site, torch.full((64,), 2.0))
    broken.denoiser.blocks[0].up_proj.weight.data /= 2  # as if its reader had not been told
    assert not torch.allclose(answers(broken)[1], answers(model)[1], atol=1e-3)


@pytest.mark.parametrize(
    ("text", "draw", "floor_db"), [("int8", "int8", 25), ("int4", "w4a8", 5), ("w8a8", "fp16", 15)]
)
def test_the_swapped_model_answers_alike(model, text, draw, floor_db):
    found = quantize(copy.deepcopy(model), QuantizeOptions(text, draw, ""))
    swapped = copy.deepcopy(model)
    swap(swapped, found)
    for after, before in zip(answers(swapped), answers(model), strict=True):
        noise = (after - before).square().mean() / before.square().mean()
        assert 10 * torch.log10(1 / noise.clamp(min=1e-12)) > floor_db


def test_a_spec_in_another_process_gives_the_same_model(model, spec, tmp_path):
    spec.save(tmp_path / "spec")
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    swap(first, spec)
    swap(second, read_spec(tmp_path / "spec"))
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(one, other)


def test_static_ranges_are_kept_a_step(model):
    found = quantize(copy.deepcopy(model), QuantizeOptions("fp16", "int8", "", portable=True, steps=3))
    layer = "denoiser.blocks.1.qkv_proj"
    assert found.layer(layer).activations == "static"
    assert found.tensors[f"{layer}.range"].shape == (3,)


def test_what_stays_in_float_says_why(model):
    layers = layers_of(model, "int4", "int8")
    assert all(layer.reason for layer in layers.values() if layer.bits is None)
    assert layers["denoiser.head"].bits is None


def damage(folder, change) -> None:
    document = json.loads((folder / JSON_FILE).read_text())
    change(document)
    (folder / JSON_FILE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema_version is 2, this edgemm reads 1"),
        (lambda d: d.update(surprise=1), "surprise: unknown field"),
        (lambda d: d["layers"]["denoiser.blocks.0.o_proj"].update(bits=3), "bits is 3, expected 4, 8 or null"),
        (lambda d: d["layers"]["denoiser.blocks.0.o_proj"].update(group=16), "scales"),
        (lambda d: d["layers"].update(none={"bits": 8}), "none.codes is missing"),
        (lambda d: d.update(tensors_sha256="0" * 64), "hash is"),
    ],
)
def test_a_damaged_spec_is_refused(spec, tmp_path, change, message):
    spec.save(tmp_path / "spec")
    damage(tmp_path / "spec", change)
    with pytest.raises(EdgemmError, match=message):
        read_spec(tmp_path / "spec")


def test_an_altered_number_is_noticed(spec, tmp_path):
    spec.save(tmp_path / "spec")
    file = tmp_path / "spec" / TENSOR_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises((CheckFailedError, InputError)):
        read_spec(tmp_path / "spec")


def test_another_checkpoints_spec_is_refused(spec):
    with pytest.raises(InputError, match=r"was made from checkpoint .*; other is 123"):
        spec.require_checkpoint("123", "other")


def test_a_layer_that_the_model_has_not_is_named(model):
    found = quantize(random_nano(), QuantizeOptions("int8", "int8", ""))
    found.document.layers["transformer.layers.9.mlp.up_proj"] = found.document.layers[
        "transformer.layers.1.mlp.up_proj"
    ]
    with pytest.raises(InputError, match=r"transformer\.layers\.9\.mlp\.up_proj"):
        swap(random_nano(), found)


def test_a_weight_that_is_not_finite_is_named():
    model = random_nano()
    model.transformer.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up_proj"):
        quantize(model, QuantizeOptions("int8", "fp16", ""))
    with pytest.raises(InputError, match=r"inputs of transformer\.layers\.0\.mlp\.down_proj are not finite"):
        quantize(model, QuantizeOptions("int8", "fp16", "text=gptq,draw="))


@pytest.mark.parametrize(
    ("methods", "message"),
    [("gtpq", "none of: awq"), ("awq+smoothquant", "two ways to do one thing")],
)
def test_methods_that_make_no_sense_are_refused(methods, message):
    with pytest.raises(UsageError, match=message):
        quantize(random_nano(), QuantizeOptions("int4", "fp16", f"text={methods},draw="))


def test_data_that_does_not_fit_is_refused(model, tmp_path):
    methods = "text=gptq,draw="
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for source, samples, message in (
        (tmp_path / "short.txt", None, "holds 0 pieces of 128 tokens, expected 2 or more"),
        (tmp_path / "bytes.txt", None, "bytes.txt: cannot be read: not UTF-8"),
        (tmp_path / "none.txt", None, "no such file"),
        (tmp_path, None, "no dataset.json"),
        (None, 1, "--samples 1 is too few"),
        (None, 5000, "expected 5000 or more"),
    ):
        with pytest.raises(EdgemmError, match=message):
            quantize(copy.deepcopy(model), QuantizeOptions("int4", "fp16", methods, source, samples))


def test_what_a_router_reads_is_not_smoothed():
    from edgemm.model.checkpoint import build
    from edgemm.model.config import PRESETS
    from edgemm.model.designs import variant
    from edgemm.quantize.smoothing import sites

    mixed = variant(variant(PRESETS["micro"](), mixture="4-top-1"), mixture="choice-8")
    found = sites(build(mixed))
    assert any(name.endswith("input_layernorm") for name in found)
    assert not any(name.endswith(("post_attention_layernorm", "norm_ffn")) for name in found)
    plain = sites(build("micro"))
    assert any(name.endswith("post_attention_layernorm") for name in plain)
