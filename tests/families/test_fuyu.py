"""Fuyu: patches of pixels straight into the decoder, each row with its end; read as by the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, FuyuForCausalLM
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.errors import UsageError
from edgemm.families.hf_checkpoint import greedy
from tests.families.tiny.pictures import picture
from tests.families.tiny.words import SPOKEN

OTHER = {"seed": 6, "side": 30, "patch": 10, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}


@pytest.fixture(autouse=True)
def patches_of_tensors(monkeypatch):
    """Without torchvision the library's processor hands tensors to a method of its own that takes arrays."""
    cut = FuyuImageProcessorPil.patchify_image

    def cut_tensor(self, image, patch_size=None):
        return torch.from_numpy(cut(self, np.asarray(image), patch_size))

    monkeypatch.setattr(FuyuImageProcessorPil, "patchify_image", cut_tensor)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 6}, OTHER], ids=["one", "other"])
def test_a_picture_and_a_question_are_answered_as_by_the_library(exported, changes):
    folder, model = exported("fuyu", **changes)
    library = FuyuForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor, loop = AutoProcessor.from_pretrained(folder), model.manifest.loops.text
    for seed, question in enumerate(SPOKEN):
        shown = picture(seed, loop.image_size, loop.image_size)  # other sizes take other numbers of tokens there
        given = processor(images=shown, text=question, return_legacy_image_output=False, return_tensors="pt")
        inputs = {name: torch.as_tensor(given[name]) for name in ("input_ids", "pixel_values")}
        ids = inputs["input_ids"][0].tolist()
        prompt = chat_prompt(as_messages(question, [shown]), loop, model.tokenizer)
        assert prompt.input_ids.tolist() == [
            processor.image_token_id if i == processor.image_newline_id else i for i in ids
        ]
        wanted = greedy(library, inputs, 16)
        reply = model.generate_text(question, images=[shown], max_new_tokens=16, ignore_eos=True)
        assert list(reply.token_ids) == wanted and len(set(wanted)) > 3
        with torch.no_grad():
            logits = library(**inputs).logits[0, -1].numpy()
        read, tokens = model._text.reader.read(prompt, [model._text.picture(shown)], loop)
        found = model._text.conversation().prefill(read, tokens)
        assert np.abs(found - logits).max() <= 1e-4 * max(1, np.abs(logits).max())


@pytest.mark.slow
def test_a_prompt_that_spells_the_token_of_a_picture_is_refused(exported):
    _, model = exported("fuyu", seed=6)
    with pytest.raises(UsageError, match="spells"):
        model.generate_text("|SPEAKER|", images=[picture(0)])
