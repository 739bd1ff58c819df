"""The `small` preset against transformers' own reading of SmolLM2-135M-Instruct, weights and all."""

from __future__ import annotations

import pytest
import torch

from edgemm.model import checkpoint
from edgemm.model.pretrained import find_base

pytestmark = pytest.mark.slow  # half a minute to read 135 million weights twice


@pytest.fixture(scope="module")
def small():
    return checkpoint.build("small")


@pytest.fixture(scope="module")
def reference(small):
    from transformers import AutoModelForCausalLM

    file = find_base(small.config.base)
    return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()


TEXTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The duck is left of the red heart, and 12 × 7 = 84. naïve 🐶",
]


def test_dequantized_weights_are_those_transformers_reads(small, reference):
    expected, found = reference.model.state_dict(), small.transformer.state_dict()
    assert found.keys() == expected.keys()
    assert {name for name, weight in found.items() if not torch.equal(weight, expected[name])} == set()


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_text_logits_equal_transformers_own_llama(small, reference, text):
    ids = torch.tensor([small.encode(text)])
    expected = reference(ids).logits
    hidden, _ = small.transformer(small.transformer.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    assert expected.std() > 1
    torch.testing.assert_close(small.transformer.logits(hidden), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers_tokenizer(small, text):
    from transformers import AutoTokenizer

    file = find_base(small.config.base)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert small.encode(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_greedy_replies_equal_transformers_generate(small, reference):
    text = "What is the capital of France?"
    ids, _ = small.generate(text, max_new_tokens=12)
    chat = small.config.chat
    prompt = torch.tensor([small.encode(f"{chat.user_open}{text}{chat.user_close}{chat.assistant_open}")])
    expected = reference.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert expected[: len(ids)] == ids
    assert "Paris" in small.tokenizer.decode(ids)
