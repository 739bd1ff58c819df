"""LLaVA-like readers: pictures of any shape are cut, encoded and read as the library does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    GemmaConfig,
    GraniteConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.errors import CheckpointError
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from edgemm.families.llava import parts
from tests.families.tiny.pictures import picture
from tests.families.tiny.weights import SMALL
from tests.families.tiny.words import SPOKEN


def library_says(folder, messages, pictures, count: int = 16):
    """ids, picture and the likeliest reply."""
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=pictures, return_tensors="pt")
    library = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    said = library.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
    ids = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        logits = library(**inputs).logits[0, -1].numpy()
    return ids, said[0, len(ids) :].tolist(), logits


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"seed": 5, "side": 30, "patch": 10, "hidden_size": 40}])
@pytest.mark.parametrize("shapes", [[(40, 40)], [(70, 31), (33, 50)], []])
def test_pictures_and_words_are_answered_as_by_the_library(exported, changes, shapes):
    folder, model = exported("llava", **changes)
    pictures = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    says = {"role": "user", "content": [*[{"type": "image"}] * len(shapes), {"type": "text", "text": SPOKEN[0]}]}
    ids, wanted, logits = library_says(folder, [says], pictures or None)
    loop = model.manifest.loops.text
    assert chat_prompt(as_messages(SPOKEN[0], pictures), loop, model.tokenizer).input_ids.tolist() == ids
    reply = model.generate_text(SPOKEN[0], images=pictures, max_new_tokens=16, ignore_eos=True)
    assert list(reply.token_ids) == wanted
    assert len(set(wanted)) > 3
    prompt = chat_prompt(as_messages(SPOKEN[0], pictures), loop, model.tokenizer)
    prompt, tokens = model._text.reader.read(prompt, [model._text.picture(image) for image in pictures], loop)
    found = model._text.conversation().prefill(prompt, tokens)
    assert np.abs(found - logits).max() <= 1e-4 * max(1, np.abs(logits).max())


@pytest.mark.parametrize("other", [GemmaConfig, GraniteConfig])
def test_a_text_model_with_other_mathematics_is_refused_by_name(tmp_path, other):
    """Gemma's norms add 1, Granite multiplies embeddings, branches and logits."""
    text = other(**SMALL, vocab_size=64, head_dim=8)
    vision = CLIPVisionConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, image_size=24, patch_size=8)
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"text model is of type '{other.model_type}', expected one"):
        parts(open_checkpoint(find_foreign(tmp_path)))


@pytest.mark.slow
def test_a_picture_token_that_a_user_spells_out_stays_text(exported):
    _, model = exported("llava")
    ids = chat_prompt(as_messages("<image>"), model.manifest.loops.text, model.tokenizer).input_ids
    assert model.tokenizer.token_id("<image>") not in ids
