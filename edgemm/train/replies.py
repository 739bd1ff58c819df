"""What the language model says about things before it learns to read: kept in training, so that it goes on talking.

An adapter taught on short answers alone answers everything shortly.  A share of each batch is therefore text without a
picture, with the model's own earlier reply as the target (self-distillation; sequence level, arXiv:1606.07947).
Axes: b prompts, s tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgemm.model.batch_decode import BatchDecode
from edgemm.model.prompts import TextPrompt, read_prompt, stop_ids
from edgemm.model.unified import Unified

__all__ = ["Reply", "own_replies", "prompts_about"]

TEMPLATES = (
    "What is {}?",
    "Write one sentence about {}.",
    "Tell me a short story with {} in it.",
    "Give me three facts about {}.",
    "Where would I find {}?",
    "Why do people talk about {}?",
    "Explain {} to a child.",
    "Make a list of words that go with {}.",
)
BATCH = 64

Reply = tuple[TextPrompt, list[int]]  # a message's prompt, and the ids said to it


def prompts_about(things: Sequence[str], count: int) -> list[str]:
    """`count` messages: every template in turn, over things spread evenly through the list."""
    stride = max(1, len(things) // max(count, 1))
    return [TEMPLATES[i % len(TEMPLATES)].format(things[i * stride % len(things)]) for i in range(count)]


@torch.no_grad()
def own_replies(model: Unified, messages: Sequence[str], new_tokens: int) -> list[Reply]:
    """The transformer's greedy reply to each message, at most `new_tokens` ids with the one that ends it."""
    prompts = [read_prompt(model.config, model.encode, message, pictures=0) for message in messages]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # alike lengths run together
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        said = _greedy(model, [prompts[row] for row in rows], new_tokens)
        replies |= dict(zip(rows, said, strict=True))
    return [(prompt, replies[row]) for row, prompt in enumerate(prompts)]


def _greedy(model: Unified, prompts: Sequence[TextPrompt], new_tokens: int) -> list[list[int]]:
    stops = set(stop_ids(model.config, model.encode))
    decode = BatchDecode(model, [prompt.ids for prompt in prompts], new_tokens)
    said: list[list[int]] = [[] for _ in prompts]
    tokens: Tensor | None = None
    for _ in range(new_tokens):
        tokens = model.transformer.logits(decode.step(tokens)).argmax(-1)  # (b)
        for reply, token in zip(said, tokens.tolist(), strict=True):
            if not reply or reply[-1] not in stops:
                reply.append(token)
        if all(reply[-1] in stops for reply in said):
            break
    return said
