"""The model's own replies, kept in training: batched greedy decoding says what `generate` says."""

from __future__ import annotations

import torch

from edgemm.model import checkpoint
from edgemm.model.prompts import stop_ids
from edgemm.train.samples import own_replies, prompts_about


def test_batched_replies_are_those_of_one_prompt_at_a_time():
    model = checkpoint.build("micro")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.transformer.layers.parameters():  # large enough that the reply depends on what was asked
            weight.normal_(0, 0.5, generator=random)
    messages = ["Why?", "Give me three facts about a red heart.", "Where would I find a bus?"]
    replies = own_replies(model, messages, 6)
    stops = set(stop_ids(model.config, model.tokenizer))
    for message, (_, reply) in zip(messages, replies, strict=True):
        expected, _ = model.generate(message, max_new_tokens=6, stop=False)
        ends = [place for place, token in enumerate(expected) if token in stops]
        assert reply == (expected[: ends[0] + 1] if ends else expected)
    assert len({tuple(reply) for _, reply in replies}) == 3


def test_messages_take_every_template_and_spread_over_the_things():
    messages = prompts_about([f"thing {i:02d}" for i in range(40)], 10)
    assert len(set(messages)) == 10
    assert "thing 00" in messages[0]
    assert "thing 36" in messages[9]
