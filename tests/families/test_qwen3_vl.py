"""Qwen3-VL and Cosmos3-Omni's reasoner: positions of three axes, features of several layers, the library's replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoTokenizer

from edgemm.bundle.chat import as_messages, chat_prompt
from tests.families.oracle import check_reading
from tests.families.tiny.pictures import picture
from tests.families.tiny.words import SPOKEN

OTHER = {
    "seed": 2, "side": 48, "patch": 6, "sections": (4, 2, 2), "deep": (1,), "cosmos": False, "hidden_size": 40,
    "num_hidden_layers": 2, "tied": True,
}  # fmt: skip


@pytest.fixture(scope="module", params=[{}, OTHER], ids=["cosmos3-omni", "qwen3-vl"])
def pair(request, exported):
    folder, model = exported("qwen3_vl", **request.param)
    kind = "Cosmos3Omni" if request.param.get("cosmos", True) else "Qwen3VL"
    library = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(folder, dtype=torch.float32)
    return model, library.eval(), folder


def library_inputs(folder: Path, library: Any, question: str, pictures: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """As the library's processor puts them together, which cannot be loaded here: it needs torchvision for video."""
    words = AutoTokenizer.from_pretrained(folder)
    says = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
    text = words.apply_chat_template([{"role": "user", "content": says}], tokenize=False, add_generation_prompt=True)
    library.model.rope_deltas = None  # of the prompt before
    if not pictures:
        return dict(words(text, return_tensors="pt"))
    seen = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    counts = seen["image_grid_thw"].prod(-1) // 4
    for count in counts.tolist():
        text = text.replace("<|image_pad|>", "<|placeholder|>" * count, 1)
    ids = words(text.replace("<|placeholder|>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "mm_token_type_ids": (ids == library.config.image_token_id).int(), **seen}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 0])
def test_pictures_and_words_are_answered_as_by_the_library(pair, count):
    model, library, folder = pair
    side = model.manifest.loops.text.image_size
    for seed, question in enumerate(SPOKEN):
        shown = [picture(seed + number, side, side) for number in range(count)]
        check_reading(model, library, library_inputs(folder, library, question, shown), question, shown)


@pytest.mark.slow
def test_where_the_next_token_stands_survives_reading_in_two_halves(pair):
    """The second half starts in the middle of a picture, and knows of its start from the cache alone."""
    model, *_ = pair
    loop = model.manifest.loops.text
    shown = picture(3, loop.image_size, loop.image_size)
    prompt, tokens = model._text.reader.read(
        chat_prompt(as_messages(SPOKEN[0], [shown]), loop, model.tokenizer),
        [model._text.picture(shown)],
        loop,
    )
    whole = model._text.conversation().prefill(prompt, tokens).copy()
    cut = int(np.flatnonzero(prompt.image_index >= 0)[0]) + 3
    halves = [
        type(prompt)(
            *(getattr(prompt, name)[part] for name in ("input_ids", "image_index", "attention_limit", "users_own"))
        )
        for part in (slice(cut), slice(cut, None))
    ]
    halves[1].attention_limit[:] -= cut
    conversation = model._text.conversation()
    conversation.prefill(halves[0], tokens)
    found = conversation.prefill(halves[1], tokens)
    assert np.abs(found - whole).max() <= 1e-4 * max(1, np.abs(whole).max())
