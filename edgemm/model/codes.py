"""Drawing code by code: the transformer says a picture's codes one after the other, with guidance (`objective = ar`).

As in Chameleon (arXiv:2405.09818) codes are tokens of the vocabulary, and each is read before the next is said.  Every
picture has two rows in the batch, the prompt and the empty prompt, and both read the code that their guided logits gave
(arXiv:2207.12598).  How a code is picked is the caller's business: nothing here is random.
The thin runtime has the same loop on numpy; the exporter's parity check holds the two together.
Axes: b pictures, k codes, n codes of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgemm.bundle.prompt import Prompt, Tokenizer
from edgemm.model.config import ModelConfig
from edgemm.model.prompts import codes_prompt
from edgemm.model.transformer import KeyValues, Transformer

__all__ = ["Choose", "likeliest", "write_codes", "BatchDecode"]

Choose = Callable[[Tensor], Tensor]  # guided scores (b, k) -> codes (b)


class WritesTokens(Protocol):
    """What a model has to have to be asked token by token: unified.py's Unified does."""

    config: ModelConfig
    transformer: Transformer

    @property
    def device(self) -> torch.device: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def embedded(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def likeliest(scores: Tensor) -> Tensor:
    return scores.argmax(-1)


@torch.no_grad()
def write_codes(
    model: WritesTokens, prompts: Sequence[str], guidance: float, choose: Choose = likeliest, count: int | None = None
) -> Tensor:
    """Codes (b, n) of a picture a prompt, or the first `count` of each."""
    first = model.config.first_code
    asked = [*prompts, *([""] * len(prompts) if guidance != 1 else [])]
    rows = [codes_prompt(model.config, model.tokenizer, prompt) for prompt in asked]
    wanted = model.config.image_tokens.token_count if count is None else count
    decode = BatchDecode(model, rows, wanted)
    codes: list[Tensor] = []
    tokens: Tensor | None = None
    while len(codes) < wanted:
        logits = model.transformer.logits(decode.step(tokens))[:, first:]
        if guidance != 1:
            conditional, free = logits.chunk(2)
            logits = free + guidance * (conditional - free)
        codes.append(choose(logits))
        tokens = (codes[-1] + first).repeat(len(rows) // len(prompts))
    return torch.stack(codes, dim=1)


# Several rows that are written side by side, token by token, over one padded cache.
#
# What a row's next token is, and when it ends, is the caller's business (unified.py, train/samples.py, codes.py).
# Axes: b rows, s tokens of the longest, w width.


class BatchDecode:
    """Prompts of unlike lengths, each with its pictures, with room for `new_tokens` behind the longest."""

    def __init__(
        self,
        model: WritesTokens,
        prompts: Sequence[Prompt],
        new_tokens: int,
        pictures: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        config, device = model.config.transformer, model.device
        self._model, self._prompts = model, prompts
        self._pictures = pictures or [[]] * len(prompts)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        shape = (len(prompts), config.kv_heads, int(self._lengths.max()) + new_tokens, config.head_width)
        self._past: KeyValues = [
            (torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in range(config.depth)
        ]
        self._read = 0  # tokens after the prompts

    def step(self, tokens: Tensor | None = None) -> Tensor:
        """Reads the prompts, or one more token a row (b): the hidden state (b, w) behind each row's last one."""
        transformer, pictured = self._model.transformer, None
        if tokens is None:
            x, limit, index = self._model.embedded(self._prompts, self._pictures)
            pictured, write_index, last = index >= 0, torch.zeros_like(self._lengths), self._lengths - 1
        else:
            x, write_index = transformer.embed_ids(tokens[:, None]), self._lengths + self._read
            limit, last = write_index[:, None], torch.zeros_like(self._lengths)  # a padded slot is written over first
            self._read += 1
        hidden, self._past = transformer(x, limit, self._past, write_index, pictured=pictured)
        return hidden[torch.arange(len(last), device=last.device), last]

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these alone."""
        self._past = [(keys[rows], values[rows]) for keys, values in self._past]
        self._lengths = self._lengths[rows]
