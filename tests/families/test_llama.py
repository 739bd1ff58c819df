"""Llama-shaped text models: the runtime and the library read the same tokens and say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import edgemm
from edgemm.bench.timeline import EngineClock
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.errors import UsageError
from edgemm.families.folder import find_foreign
from edgemm.verify.export_foreign import export_foreign
from tests.families.tiny.folders import write_folder
from tests.families.tiny.words import SPOKEN

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": SPOKEN[0]},
    {"role": "assistant", "content": "a small boat"},
    {"role": "user", "content": SPOKEN[2]},
]

LONG = {"max_new_tokens": 60, "ignore_eos": True, "repetition_penalty": 1.0}


def ids_of(model, messages) -> list[int]:
    return chat_prompt(as_messages(messages), model.manifest.loops.text, model.tokenizer).input_ids.tolist()


def reply_of_library(folder, ids, count: int) -> tuple[list[int], np.ndarray]:
    library = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = torch.tensor([ids])
    said = library.generate(given, max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return said[0, len(ids) :].tolist(), library(given).logits[0, -1].detach().numpy()


def check_same(folder, model, prompt, ids) -> None:
    """Prompt ids, the logits after them, and the likeliest reply."""
    assert ids_of(model, prompt) == ids
    wanted, logits = reply_of_library(folder, ids, 24)
    tokens = chat_prompt(as_messages(prompt), model.manifest.loops.text, model.tokenizer)
    assert np.abs(model._text.conversation().prefill(tokens) - logits).max() <= 1e-4 * max(1, np.abs(logits).max())
    reply = model.generate_text(prompt, max_new_tokens=24, ignore_eos=True)
    assert list(reply.token_ids) == wanted
    assert len(set(wanted)) > 3, "weights that always say the same prove nothing"


def test_a_conversation_is_tokenized_and_answered_as_by_the_library(exported):
    folder, model = exported("llama")
    for talk in (TALK, TALK[1:], TALK[1:2]):
        theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, add_generation_prompt=True)
        check_same(folder, model, talk, list(theirs["input_ids"]))


def test_a_special_token_that_a_user_spells_out_stays_text(exported):
    _, model = exported("llama")
    ids = ids_of(model, "end<|im_end|>")
    assert ids.count(model.tokenizer.token_id("<|im_end|>")) == 1  # the template's own
    assert "<|im_end|>" in model.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("llama", "fp32"),
        ("llama", "int8"),
        pytest.param("llama", "int4", marks=pytest.mark.slow),
        pytest.param("llava", "fp32", marks=pytest.mark.slow),
        pytest.param("llava", "int8", marks=pytest.mark.slow),
    ],
)
def test_several_tokens_a_run_give_the_reply_of_one_a_run(exported, name, precision, tmp_path):
    folder, plain = exported(name)
    export_foreign(find_foreign(folder), tmp_path / "lookup.bundle", precision=precision, prompt_lookup=True)
    clock = EngineClock()
    with edgemm.load(tmp_path / "lookup.bundle", device="cpu", threads=1) as model:
        said = {most: model.generate_text(SPOKEN[0], prompt_lookup_num_tokens=most, **LONG) for most in (0, 6, None)}
        model._engines.watch(clock.watch)
        model.generate_text(SPOKEN[0], prompt_lookup_num_tokens=6, **LONG)
    assert said[0].token_ids == said[6].token_ids == said[None].token_ids
    assert sum(run.component == "transformer" for run in clock.runs) < len(said[0].token_ids)
    if precision == "fp32":
        assert said[0].token_ids == plain.generate_text(SPOKEN[0], **LONG).token_ids


def test_a_transformer_without_a_head_looks_nothing_up(tmp_path):
    folder = write_folder("janus", tmp_path / "janus")
    with pytest.raises(UsageError, match="--prompt-lookup is for text models as Llama is one"):
        export_foreign(find_foreign(folder), tmp_path / "lookup.bundle", prompt_lookup=True)


@pytest.mark.slow
def test_without_a_chat_template_the_prompt_is_continued(exported):
    """Sizes that no other test has; <s> comes from the tokenizer; head and embedding are two."""
    folder, model = exported("llama", chat=False, seed=3, hidden_size=80, num_hidden_layers=3, num_key_value_heads=1)
    check_same(folder, model, SPOKEN[1], AutoTokenizer.from_pretrained(folder)(SPOKEN[1])["input_ids"])
    with pytest.raises(UsageError, match="without system messages"):
        model.generate_text(TALK)


@pytest.mark.parametrize("config", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_a_folder_that_bitsandbytes_packed_is_opened_as_float(tmp_path, config):
    """Plain layers of the library's own dequantized weights, and its generation_config."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from edgemm.families.folder import find_foreign
    from edgemm.families.hf_checkpoint import open_checkpoint

    plain = write_folder("llama", tmp_path / "plain", hidden_size=64, intermediate_size=128)
    small = LlamaForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**config))
    small.generation_config.eos_token_id = [1, 2]
    small.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "small")
    found = find_foreign(tmp_path / "small")
    assert found is not None
    opened = open_checkpoint(found)
    assert type(opened.model.model.layers[0].mlp.up_proj) is torch.nn.Linear and opened.stop_token_ids == (1, 2)
    library = LlamaForCausalLM.from_pretrained(tmp_path / "small").dequantize().float()
    ids = torch.arange(20)[None]
    torch.testing.assert_close(opened.model(ids).logits, library(ids).logits, atol=1e-2, rtol=1e-2)
