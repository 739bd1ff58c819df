"""A GGUF file goes in as a folder does: what the library reads in it is what the bundle says."""

from __future__ import annotations

import json
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import edgemm
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.errors import CheckpointError, MissingError
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from edgemm.verify.export_foreign import export_foreign
from tests.families.test_chat_ids import CHATML
from tests.families.tiny.words import SPOKEN, tokenizer
from tests.heard import hearing

WIDTH, HEADS, KV_HEADS, FFN, DEPTH = 32, 4, 2, 64, 2
Q8 = gguf.GGMLQuantizationType.Q8_0


def write(path, kind="llama", eos="<|endoftext|>", licence="mit", more=lambda writer: None):
    """Random weights, packed as people's are, and a tokenizer with its template; `more` adds to the writer."""
    head = 128 if kind == "qwen3" else WIDTH // HEADS  # the library reads no other width of a Qwen3's heads
    words = tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner = json.loads(words.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(words.get_vocab().items(), key=lambda pair: pair[1])]
    writer, random = gguf.GGUFWriter(path, kind), np.random.default_rng(0)
    writer.add_license(licence)
    writer.add_block_count(DEPTH)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if kind.startswith("qwen") else "smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokens.index(eos))
    writer.add_chat_template(CHATML)
    more(writer)

    def add(name, rows, columns):
        weight = random.standard_normal((rows, columns), dtype=np.float32) * 1.5 / columns**0.5
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, Q8), raw_dtype=Q8)

    def add_norm(name, width=WIDTH):
        writer.add_tensor(f"{name}.weight", 1 + random.standard_normal(width, dtype=np.float32) * 0.1)

    add("token_embd", len(tokens), WIDTH)
    add("output", len(tokens), WIDTH)
    add_norm("output_norm")
    wide, narrow = head * HEADS, head * KV_HEADS
    for layer in range(DEPTH):
        for name, rows, columns in (
            ("attn_q", wide, WIDTH),
            ("attn_k", narrow, WIDTH),
            ("attn_v", narrow, WIDTH),
            ("attn_output", WIDTH, wide),
            ("ffn_gate", FFN, WIDTH),
            ("ffn_up", FFN, WIDTH),
            ("ffn_down", WIDTH, FFN),
        ):
            add(f"blk.{layer}.{name}", rows, columns)
        add_norm(f"blk.{layer}.attn_norm")
        add_norm(f"blk.{layer}.ffn_norm")
        if kind == "qwen2":
            for name, rows in (("attn_q", wide), ("attn_k", narrow), ("attn_v", narrow)):
                writer.add_tensor(f"blk.{layer}.{name}.bias", random.standard_normal(rows, dtype=np.float32))
        if kind == "qwen3":
            add_norm(f"blk.{layer}.attn_q_norm", head)
            add_norm(f"blk.{layer}.attn_k_norm", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.slow), "qwen3"])
def test_a_bundle_of_a_gguf_file_says_what_the_library_reads_in_it(kind, tmp_path):
    file = write(tmp_path / "tiny.Q8_0.gguf", kind)
    found = find_foreign(tmp_path)  # the folder that holds it alone is as good
    assert found == find_foreign(file) and found.folder == file
    with hearing() as heard:
        manifest = export_foreign(found, tmp_path / "made.bundle")
    assert manifest.name == "tiny.Q8_0" and manifest.licences[0].licence == "mit"
    assert "ends a reply with <|im_end|>" in str(heard.lines)  # the file names <|endoftext|> alone
    library = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    said = {"role": "user", "content": SPOKEN[2]}
    ids = list(words.apply_chat_template([said], add_generation_prompt=True)["input_ids"])
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as model:
        loop = model.manifest.loops.text
        assert set(loop.stop_token_ids) == set(words.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
        assert chat_prompt(as_messages(SPOKEN[2]), loop, model.tokenizer).input_ids.tolist() == ids
        wanted = library.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=-1)
        reply = model.generate_text(SPOKEN[2], max_new_tokens=16, ignore_eos=True)
    assert list(reply.token_ids) == wanted[0, len(ids) :].tolist() and len(set(reply.token_ids)) > 3


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def add_scaling(writer, kind, rope):
    """As convert_hf_to_gguf.py writes them: Llama 3's as a divisor of each frequency."""
    if rope["rope_type"] == "llama3":
        plain, scaled = (LlamaRotaryEmbedding(config_of(told)).inv_freq for told in ({}, rope))
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
        return
    writer.add_string(f"{kind}.rope.scaling.type", rope["rope_type"])
    writer.add_float32(f"{kind}.rope.scaling.factor", rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_uint32(f"{kind}.rope.scaling.original_context_length", rope["original_max_position_embeddings"])


def config_of(rope):
    told = {"rope_theta": 1e4, "rope_type": "default", **rope}
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "max_position_embeddings": 512}
    return LlamaConfig(**sizes, rope_parameters=told)


@pytest.mark.parametrize(
    ("kind", "rope"), [("llama", LLAMA3), ("llama", {"rope_type": "linear", "factor": 2.0}), ("qwen2", YARN)]
)
def test_a_scaled_rotary_embedding_is_the_one_that_the_file_says(kind, rope, tmp_path):
    """The library reads the same weights with its own config of that scaling; of the file's it would read none."""
    file = write(tmp_path / "scaled.gguf", kind, more=lambda writer: add_scaling(writer, kind, rope))
    library = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    ids = torch.arange(200)[None] % 97
    with torch.no_grad():
        plain = library(ids).logits
        library.config.rope_parameters = {**library.config.rope_parameters, **rope}
        wanted = type(library)(library.config)
        wanted.load_state_dict(library.state_dict())
        wanted = wanted.eval()(ids).logits
        found = open_checkpoint(find_foreign(file)).model(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert float((plain - wanted).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"),
            "scaled by 'longrope', expected none",
        ),
        (lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"), "yarn, without original_context_length"),
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.full(3, 2.0, np.float32)),
            r"rope_freqs.weight has \(3,\) numbers, expected 4",
        ),
    ],
)
def test_another_scaling_is_refused(more, message, tmp_path):
    found = find_foreign(write(tmp_path / "scaled.gguf", more=more))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(found)


def test_what_is_no_such_file_says_what_it_is(tmp_path):
    file = write(tmp_path / "a.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"cut\.gguf: not a GGUF file"):
        find_foreign(tmp_path / "cut.gguf")
    with pytest.raises(CheckpointError, match="2 GGUF files, give one of them"):
        find_foreign(tmp_path)
    for kind in ("bert", "mistral"):  # a published Mistral calls itself llama; the library reads no other
        writer = gguf.GGUFWriter(tmp_path / f"{kind}.gguf", kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match=f"a GGUF of '{kind}', which is not read; expected one of: llama"):
            find_foreign(tmp_path / f"{kind}.gguf")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    file = write(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match=r"the package gguf: pip install 'edgemm\[families,ort\]'"):
        find_foreign(file)
