"""Folders of the hub that cannot be a bundle: one line that names the file and exit 3, never a bug and never a wait."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import edgemm
from edgemm.bundle.forked import forked
from edgemm.cli.main import main
from edgemm.errors import BundleError, CheckpointError, UsageError
from edgemm.families import hf_checkpoint
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from edgemm.families.llama import parts
from edgemm.verify.export_foreign import export_foreign
from tests.families.tiny.folders import write_folder
from tests.families.tiny.llama import CHATML
from tests.heard import hearing


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_folder("llama", tmp_path_factory.mktemp("strangers") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    copy = tmp_path / "folder"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def packed(method, **more):
    return lambda folder: change(folder / "config.json", quantization_config={"quant_method": method, **more})


def compressed(folder):
    change(folder / "config.json", compression_config={"format": "pack-quantized"})


def pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def weights(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def added(name, by=1.0):
    """One more tensor, as large as a layer's output."""

    def write(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = by * torch.ones(len(tensors["model.norm.weight"]))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return write


def config(**fields):
    return lambda folder: change(folder / "config.json", **fields)


def outside(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def template(text):
    def write(folder):
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        change(folder / "tokenizer_config.json", chat_template=text)

    return write


def deep(folder):
    (folder / "config.json").write_text("[" * 200_000)


def panicking(folder):
    """A tokenizer at which the tokenizers library panics, as it does when a template names no token."""
    change(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})


def adapter(alone=False):
    def write(folder):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}')
        (folder / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        if alone:
            for name in ("config.json", "model.safetensors"):
                (folder / name).unlink()

    return write


ENDLESS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
FAULTS = {
    "an adapter beside": (adapter(), "folder: a PEFT adapter lies beside full weights; merge it"),
    "an adapter alone": (adapter(alone=True), "folder: a PEFT adapter and no model; its base is someone/base: merge"),
    "gptq": (packed("gptq", bits=4), "its weights are packed by gptq, which edgemm cannot read"),
    "awq": (packed("awq", bits=4), "packed by awq"),
    "compressed-tensors": (packed("compressed-tensors"), "packed by compressed-tensors"),
    "compressed, as older files say": (compressed, "packed by compressed-tensors"),
    "pointer": (weights(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "git lfs pull"),
    "cut": (cut, "model.safetensors: damaged or cut"),
    "empty": (weights(b""), "model.safetensors: damaged or cut"),
    "a bias that its config denies": (
        added("model.layers.0.self_attn.q_proj.bias"),
        "model.layers.0.self_attn.q_proj.bias is in no place that its config knows, and would be left out of its layer",
    ),
    "a norm that its architecture lacks": (added("model.layers.1.self_attn.q_norm.weight"), "q_norm.weight is in no"),
    "scales of a head": (added("lm_head.weight_scale"), "lm_head.weight_scale is in no place"),
    "strict": (config(hidden_size="wide"), "config.json cannot be read"),
    "no heads": (config(num_attention_heads=0), "folder: "),
    "no size": (config(num_hidden_layers=None), "folder: "),
    "fewer layers": (
        config(num_hidden_layers=1),
        "model.layers.1.input_layernorm.weight is of a layer that its config",
    ),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, expected 1024 at most"),
    "a billion layers of an eye": (
        config(vision_config={"depth": 10**9}),
        "vision_config.depth is 1000000000, expected",
    ),
    "outside": (outside, "weight_map names '../other/model.safetensors', which is no file of this folder"),
    "pipe of weights": (pipe("model.safetensors"), "model.safetensors: not a file; expected a file of a model"),
    "pipe of a tokenizer": (pipe("tokenizer.json"), "tokenizer.json: not a file"),
    "pipe of a config": (pipe("config.json"), "config.json is missing"),
    "jinja": (template("{% if %}"), "folder: "),
    "jinja of 10 GB": (template("{{ 'x' * 10**10 }}"), "its chat template: took more than 256 MiB"),
    "jinja without end": (template(ENDLESS), "its chat template: took more than 2 s"),
    "jinja at run time": (template("{{ messages[99].content.x }}"), "folder: "),
    "deep": (deep, "config.json: not the JSON that was expected: nested too deep"),
    "panic": (panicking, "its tokenizer cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_a_bundle_says_so_in_one_line(folder, tmp_path, capsys, monkeypatch, fault):
    break_it, message = FAULTS[fault]
    assert forked.__defaults__ == (1 << 28, 10)
    monkeypatch.setattr(hf_checkpoint, "forked", partial(forked, timeout_s=2.0))  # ten seconds of a core say no more
    break_it(folder)
    code = main(["export", str(folder), "--output", str(tmp_path / "made.bundle")])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgemm: error")]
    assert (code, len(said)) == (3, 1) and message in said[0] and "a bug" not in said[0], said
    assert not (tmp_path / "made.bundle").exists()


def without_template(folder):
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "tokenizer_config.json", folder / "processor_config.json"):
        if path.is_file():
            document = json.loads(path.read_text())
            document.pop("chat_template", None)
            path.write_text(json.dumps(document))


def with_short_context(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder / "config.json", text_config={**text, "max_position_embeddings": 16})


@pytest.mark.parametrize(
    ("family", "break_it", "message"),
    [
        ("janus", without_template, "no chat template (chat_template.jinja"),
        ("emu3", with_short_context, "the model reads 16 tokens at most, one picture has "),
    ],
)
def test_what_cannot_draw_its_picture_is_refused_before_anything_is_traced(
    tmp_path, capsys, monkeypatch, family, break_it, message
):
    folder = write_folder(family, tmp_path / "folder")
    break_it(folder)
    monkeypatch.setattr("edgemm.verify.export_foreign.write_graphs", None)
    monkeypatch.setattr("edgemm.families.emu3.component", None)  # called, they would fail
    code = main(["export", str(folder), "--output", str(tmp_path / "made.bundle")])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgemm: error")]
    assert (code, len(said)) == (3, 1) and message in said[0] and "a bug" not in said[0], said


def test_opened_as_a_bundle_a_folder_says_what_it_is(folder, tmp_path):
    with pytest.raises(
        BundleError, match=r"a checkpoint and no bundle; .* to make that: edgemm export .*folder --output"
    ):
        edgemm.load(folder)
    adapter(alone=True)(folder)
    with pytest.raises(BundleError, match="an adapter and no bundle; load its base's bundle"):
        edgemm.load(folder)


def another(folder, name):
    """The same weights with other numbers, a backup of before, perhaps."""
    tensors = {key: 2 * tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / name, {"format": "pt"})


@pytest.mark.parametrize("name", ["model_backup.safetensors", "old.safetensors"])
def test_weights_that_lie_beside_the_librarys_own_are_not_read(folder, name):
    another(folder, name)
    library = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_checkpoint(find_foreign(folder)).model(ids).logits, library(ids).logits)


def test_weights_of_two_kinds_are_refused(folder):
    another(folder, "other.safetensors")
    index = dict.fromkeys(load_file(folder / "model.safetensors"), "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors, and .*\.index\.json names other files"):
        open_checkpoint(find_foreign(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"is in o\w+\.safetensors and in another file; keep one"):
        open_checkpoint(find_foreign(folder))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.norm.weight"])
def test_tensors_that_no_layer_computes_with_are_none_of_its_business(folder, name):
    added(name)(folder)
    assert open_checkpoint(find_foreign(folder)).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("context", "asked", "message"),
    [
        (256, 64, r"max_context is 64, expected 1\d\d \(a question and what its template puts around it\) to 256"),
        (100, None, "reads 100 tokens at most, a question with the words that its template puts around it has 1"),
    ],
)
def test_a_template_that_leaves_no_room_for_a_reply_is_told(folder, tmp_path, context, asked, message):
    """The library's reply of no token at all would never have ended."""
    wordy = "{% if messages[0]['role'] != 'system' %}" + "a small boat " * 16 + "{% endif %}"
    template(wordy + CHATML)(folder)
    config(max_position_embeddings=context)(folder)
    with pytest.raises((UsageError, CheckpointError), match=message):
        export_foreign(find_foreign(folder), tmp_path / "made.bundle", max_context=asked)
    assert not (tmp_path / "made.bundle").exists()


@pytest.mark.slow
def test_the_last_line_shows_how_to_use_what_was_made(tmp_path, capsys, exported):
    folder, _ = exported("llava")
    assert main(["export", str(folder), "--output", str(tmp_path / "made.bundle")]) == 0
    assert "made.bundle --image photo.png --prompt 'What is this?'" in capsys.readouterr().out


def test_a_base_model_without_a_template_is_told(whole, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(whole, folder)
    (folder / "chat_template.jinja").unlink()
    with hearing() as heard:
        parts(open_checkpoint(find_foreign(folder)))
    assert "it has no chat template: a prompt goes in as it is" in str(heard.lines)
