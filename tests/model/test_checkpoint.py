"""Checkpoints come back as they went, and a damaged one is refused by the file and tensor."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgemm.errors import CheckpointError, ResourceError
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from tests.model.tiny import micro, random_micro, tokens_of


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    checkpoint.save(model, folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def with_adapter(model: Unified, folder, **changes):
    """PEFT's own wrapper around a copy of the transformer, with random LoRA on layers 4 and 5, and its saved folder."""
    from peft import LoraConfig, get_peft_model

    names = [f"layers.{layer}.{name}" for layer in (4, 5) for name in ("self_attn.q_proj", "mlp.down_proj")]
    settings = {"r": 4, "lora_alpha": 12, "target_modules": names} | changes
    peft = get_peft_model(copy.deepcopy(model.transformer), LoraConfig(**settings))
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    peft.save_pretrained(folder)
    return peft


def test_save_and_load_give_back_every_bit(model, saved):
    loaded = checkpoint.load(saved)
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert {name for name in state if not torch.equal(state[name], expected[name])} == set()
    assert loaded.config == model.config
    assert loaded.tokenizer_json == model.tokenizer_json
    noise = tokens_of(model, 1)
    assert torch.equal(loaded.draw(["a red circle"], noise), model.draw(["a red circle"], noise))


def test_bfloat16_halves_the_file_and_rounds_each_number_once(model, saved, tmp_path):
    checkpoint.save(model, tmp_path / "half", torch.bfloat16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (saved, tmp_path / "half")]
    assert sizes[1] < 0.51 * sizes[0]
    loaded, expected = checkpoint.load(tmp_path / "half").state_dict(), model.state_dict()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].bfloat16().float()), name


def test_a_saved_folder_holds_what_the_format_says_and_others_may_read_it(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(checkpoint.FORMAT_FILES)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 for path in (saved, *saved.iterdir()))


def test_saving_again_replaces_the_folder_and_keeps_its_model_card(model, copied):
    (copied / "README.md").write_text("what it is")
    (copied / "leftover.txt").write_text("of an older version")
    other = random_micro(seed=5)
    checkpoint.save(other, copied)
    assert (copied / "README.md").read_text() == "what it is"
    assert not (copied / "leftover.txt").exists()
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoint"]  # nothing temporary is left
    name = "denoiser.head.weight"
    assert torch.equal(checkpoint.load(copied).state_dict()[name], other.state_dict()[name])


def test_the_same_seed_builds_the_same_model():
    one, same, other = (checkpoint.build("micro", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["denoiser.embed.weight"], other["denoiser.embed.weight"])


def test_a_new_micro_is_unsure_of_every_token():
    """The head shares the embedding: a spread of 1 would start the loss beyond 100, where log(264) is 5.6."""
    _, logits = checkpoint.build("micro").generate("hello", max_new_tokens=1)
    surprise = -(logits[0].softmax(-1) * logits[0].log_softmax(-1)).sum()
    assert surprise > 4.5


# --- a base of its own ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def based(llama_folder, llama_shape, model, tmp_path_factory):
    """A model whose transformer comes from a Hugging Face folder."""
    base = shutil.copytree(llama_folder, tmp_path_factory.mktemp("base") / "llama")
    (base / "tokenizer.json").write_text(json.dumps(small_tokenizer(model)))
    config = micro(
        base=str(base),
        transformer=llama_shape,
        denoiser=dataclasses.replace(model.config.denoiser, depth=1, prefix_layers=(0,)),
    )
    return checkpoint.build(config).requires_grad_(False)


def small_tokenizer(model) -> dict:
    """The byte tokenizer cut to 96 tokens: the special ones and half of ASCII."""
    document = json.loads(model.tokenizer_json)
    kept = [symbol for symbol in document["model"]["vocab"] if symbol.isascii()][:88]
    document["model"]["vocab"] = {symbol: i for i, symbol in enumerate(kept)}
    for i, token in enumerate(document["added_tokens"]):
        token["id"] = len(kept) + i
    return document


def test_a_base_is_loaded_from_its_own_place_and_never_stored_again(based, llama, tmp_path):
    checkpoint.save(based, tmp_path / "checkpoint")
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert not [name for name in stored if name.startswith("transformer.")]
    loaded = checkpoint.load(tmp_path / "checkpoint").transformer.state_dict()
    expected = llama.model.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_base_that_lacks_a_layer_is_refused_by_the_tensors_names(based):
    deeper = dataclasses.replace(based.config.transformer, depth=4)
    with pytest.raises(CheckpointError, match=r"layers\.3\.input_layernorm\.weight"):
        checkpoint.build(dataclasses.replace(based.config, transformer=deeper))


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {"layers.5.mlp.down_proj": 2}}])
def test_a_merged_adapter_is_pefts_own_merge(model, copied, changes):
    peft = with_adapter(model, copied / checkpoint.ADAPTER, **changes)
    expected = peft.merge_and_unload().state_dict()
    loaded = checkpoint.load(copied)
    state, before = loaded.transformer.state_dict(), model.transformer.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        torch.testing.assert_close(state[name], expected[name], atol=1e-5, rtol=0)
    moved = {name for name in state if not torch.equal(state[name], before[name])}
    assert moved == {f"layers.{i}.{n}.weight" for i in (4, 5) for n in ("self_attn.q_proj", "mlp.down_proj")}


def test_an_unmerged_adapter_leaves_the_weights_alone_and_is_named(model, copied):
    with_adapter(model, copied / checkpoint.ADAPTER)
    loaded = checkpoint.load(copied, merge=False)
    assert loaded.adapter == copied / checkpoint.ADAPTER
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_merged_weights_of_a_model_without_a_base_are_not_merged_again(model, copied, tmp_path):
    with_adapter(model, copied / checkpoint.ADAPTER)
    once = checkpoint.load(copied)
    checkpoint.save(once, tmp_path / "again")
    again = checkpoint.load(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.state_dict().items())


def test_the_adapter_of_a_model_with_a_base_travels_on(based, tmp_path):
    checkpoint.save(based, tmp_path / "one")
    names = ["layers.2.self_attn.q_proj"]
    with_adapter(based, tmp_path / "one" / checkpoint.ADAPTER, target_modules=names)
    once = checkpoint.load(tmp_path / "one")
    weights = [model.transformer.state_dict()[f"{names[0]}.weight"] for model in (once, based)]
    assert not torch.equal(*weights)
    checkpoint.save(once, tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    twice = checkpoint.load(tmp_path / "two").state_dict()
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.state_dict().items())


def test_a_model_that_wears_its_adapter_is_stored_under_its_own_names(model):
    from peft import LoraConfig, get_peft_model

    wearing = checkpoint.build(micro())
    expected = checkpoint.stored_state(wearing).keys()
    get_peft_model(wearing.transformer, LoraConfig(target_modules=["q_proj"]))  # changes the module in place
    assert checkpoint.stored_state(wearing).keys() == expected


def edit_adapter(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "transformer_adapter"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"half"), "transformer_adapter"),
        (lambda f: edit_adapter(f, lambda t: t.pop(next(n for n in t if "lora_B" in n))), "no half of a LoRA pair"),
        (lambda f: edit_adapter(f, lambda t: t.pop(next(n for n in t if "lora_A" in n))), "no half of a LoRA pair"),
        (lambda f: edit_adapter(f, lambda t: t.update(surprise=torch.zeros(1))), "surprise is no half"),
        (
            lambda f: edit_adapter(f, lambda t: t.update({n: x[:, :3].clone() for n, x in t.items() if "lora_A" in n})),
            r"the transformer's weight is \(128, 128\)",
        ),
    ],
)
def test_a_damaged_adapter_is_refused(model, copied, damage, message):
    with_adapter(model, copied / checkpoint.ADAPTER, target_modules=["layers.4.self_attn.q_proj"])
    damage(copied / checkpoint.ADAPTER)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(copied)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": "olora"}])
def test_an_adapter_that_is_more_than_plain_lora_is_refused(model, copied, changes):
    with_adapter(model, copied / checkpoint.ADAPTER, **changes)
    with pytest.raises(CheckpointError, match=f"{next(iter(changes))} is .*; merge it before"):
        checkpoint.load(copied)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", checkpoint.FORMAT_FILES)
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(copied, name):
    (copied / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(copied)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", checkpoint.FORMAT_FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_half_written_file_is_refused_by_its_name(copied, name, share):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("denoiser.head.bias"), "tensor denoiser.head.bias is missing"),
        (lambda t: t.update(surprise=torch.zeros(2)), "unknown tensor surprise"),
        (
            lambda t: t.update({"denoiser.head.bias": torch.zeros(7)}),
            r"denoiser.head.bias is \(7,\), config.json says \(192,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(copied, change, message):
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(copied)


def test_another_schema_version_is_refused(copied):
    document = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(document | {"schema_version": 7}))
    with pytest.raises(CheckpointError, match="schema_version is 7, this edgemm reads 1"):
        checkpoint.load(copied)


def test_a_tokenizer_too_large_for_the_model_is_refused_by_its_file(copied):
    document = json.loads((copied / "config.json").read_text())
    document["transformer"]["vocab_size"] = 100
    (copied / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer has 264 tokens"):
        checkpoint.load(copied)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(model, copied, monkeypatch):
    """The library that writes the tensors hides the error's number; this is what it raises on a full tmpfs."""
    import safetensors.torch
    from safetensors import SafetensorError

    def full(tensors, path, metadata):
        path.write_bytes(b"the first part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ResourceError, match=r"disk full: needs .* nothing was changed") as refusal:
        checkpoint.save(random_micro(seed=5), copied)
    assert refusal.value.exit_code == 5
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoint"]


def test_a_rename_that_fails_puts_the_old_checkpoint_back(model, copied, monkeypatch):
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise PermissionError(13, "no", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError):
        checkpoint.save(random_micro(seed=5), copied)
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoint"]
    name = "denoiser.head.weight"
    assert torch.equal(checkpoint.load(copied).state_dict()[name], model.state_dict()[name])
