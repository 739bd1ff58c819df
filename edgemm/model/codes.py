"""Drawing code by code: the transformer says a picture's codes one after the other, with guidance (`objective = ar`).

As in Chameleon (arXiv:2405.09818) codes are tokens of the vocabulary, and each is read before the next is said.  Every
picture has two rows in the batch, the prompt and the empty prompt, and both read the code that their guided logits gave
(arXiv:2207.12598).  How a code is picked is the caller's business: nothing here is random.
The thin runtime has the same loop on numpy; the exporter's parity check holds the two together.
Axes: b pictures, s tokens, k codes, n codes of a picture, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgemm.model.prompts import codes_prompt
from edgemm.model.transformer import KeyValues

if TYPE_CHECKING:
    from edgemm.model.unified import Unified

__all__ = ["Choose", "likeliest", "write_codes"]

Choose = Callable[[Tensor], Tensor]  # guided scores (b, k) -> codes (b)


def likeliest(scores: Tensor) -> Tensor:
    return scores.argmax(-1)


@torch.no_grad()
def write_codes(
    model: Unified, prompts: Sequence[str], guidance: float, choose: Choose = likeliest, count: int | None = None
) -> Tensor:
    """Codes (b, n) of a picture a prompt, or the first `count` of each."""
    config, first = model.config.transformer, model.config.first_code
    asked = [*prompts, *([""] * len(prompts) if guidance != 1 else [])]
    rows = [codes_prompt(model.config, model.encode, prompt) for prompt in asked]
    wanted = model.config.image_tokens.token_count if count is None else count
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    longest = int(lengths.max())
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)  # (b, s)
    shape = (len(rows), config.kv_heads, longest + wanted, config.head_width)
    past: KeyValues = [
        (torch.zeros(shape, device=model.device), torch.zeros(shape, device=model.device)) for _ in range(config.depth)
    ]
    limit = torch.arange(longest, device=model.device).expand(len(rows), -1)
    write_index, last = torch.zeros_like(lengths), lengths - 1
    codes: list[Tensor] = []
    while True:
        hidden, past = model.transformer(model.transformer.embed_tokens(ids), limit, past, write_index)
        said = hidden[torch.arange(len(rows), device=model.device), last]  # (b, w)
        logits = model.transformer.logits(said)[:, first:]
        if guidance != 1:
            conditional, free = logits.chunk(2)
            logits = free + guidance * (conditional - free)
        codes.append(choose(logits))
        if len(codes) == wanted:
            return torch.stack(codes, dim=1)
        write_index = lengths + len(codes) - 1  # a padded slot is written over before it is seen
        ids = (codes[-1] + first).repeat(len(rows) // len(prompts))[:, None]
        limit, last = write_index[:, None], torch.zeros_like(last)
