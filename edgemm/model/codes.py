"""Drawing code by code: the transformer says a picture's codes one after the other, with guidance (`objective = ar`).

As in Chameleon (arXiv:2405.09818) codes are tokens of the vocabulary, and each is read before the next is said.  Every
picture has two rows in the batch, the prompt and the empty prompt, and both read the code that their guided logits gave
(arXiv:2207.12598).  How a code is picked is the caller's business: nothing here is random.
The thin runtime has the same loop on numpy; the exporter's parity check holds the two together.
Axes: b pictures, k codes, n codes of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgemm.model.batch_decode import BatchDecode
from edgemm.model.prompts import codes_prompt

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
    first = model.config.first_code
    asked = [*prompts, *([""] * len(prompts) if guidance != 1 else [])]
    rows = [codes_prompt(model.config, model.encode, prompt) for prompt in asked]
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
