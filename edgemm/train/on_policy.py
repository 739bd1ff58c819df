"""On-policy distillation: the student answers by itself, and the teacher judges every word that it chose.

A student that only ever sees the data's answers is never taught what to do after a word of its own (arXiv:2306.13649).
The divergence is the generalized Jensen-Shannon one of that paper at beta = 1/2, over all words.
Axes: a answer tokens, b batch, m image tokens, f features a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgemm.model.prompts import TextPrompt, stop_ids
from edgemm.model.unified import Unified
from edgemm.train.read import ReadTask

__all__ = ["jensen_shannon", "own_answers"]


@torch.no_grad()
def own_answers(
    task: ReadTask, model: Unified, features: Tensor, prompts: Sequence[TextPrompt], new_tokens: int, seed: int
) -> list[list[int]]:
    """The model's sampled answers to prompts over features (b, m, f): at most `new_tokens` ids each, the one that ends
    it among them."""
    stops = set(stop_ids(model.config, model.encode))
    random = torch.Generator(model.device).manual_seed(seed)
    said: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(new_tokens):
        if not going:
            break
        # a token stands in for the one that is asked for: what comes before it is what is scored
        tried = [[*said[row], 0] for row in going]
        hidden, _, _ = task.answered(model, features[going], [prompts[row] for row in going], tried)
        last = torch.tensor([len(answer) for answer in tried]).cumsum(0) - 1
        words = model.transformer.logits(hidden[last.to(hidden.device)]).float().softmax(dim=-1)  # (b, vocab)
        for row, token in zip(going, torch.multinomial(words, 1, generator=random)[:, 0].tolist(), strict=True):
            said[row].append(token)
        going = [row for row in going if said[row][-1] not in stops]
    return said


def jensen_shannon(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Mean divergence of logits (a, vocab) at a temperature, times its square, a scalar; at temperature 1 at most
    ln 2."""
    own, other = ((logits.float() / temperature).log_softmax(dim=-1) for logits in (ours, theirs))
    middle = torch.logaddexp(own, other) - math.log(2)
    one, two = (nn.functional.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (own, other))
    return (one + two) / 2 * temperature**2
