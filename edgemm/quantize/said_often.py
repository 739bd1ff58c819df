"""Which rows of an embedding deserve the finer precision: tokens that are said often, told without any data.

Vocabularies begin with what was merged first, so a low number means a frequent token.  A model that sees pictures also
knows the tokens that spell their names (visual_words.py): what it reads and draws is said in those, however rare they
are in books, so they stand before all others.
Axes: v tokens of the vocabulary, u letters, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.model.unified import Unified

__all__ = ["order_of", "places_of"]

SAME = 0.999  # cosine of a letter and the row that it was copied from


@torch.no_grad()
def places_of(model: Unified) -> Tensor | None:
    """Token -> its row, the most said first (v); None where the vocabulary's own order is as good."""
    words = getattr(model.image_encoder, "words", None)
    if words is None:
        return None
    table = nn.functional.normalize(model.transformer.embed_tokens.weight, dim=-1)  # (v, w)
    alike, tokens = (nn.functional.normalize(words.letters, dim=-1) @ table.T).max(-1)  # (u)
    spelled = tokens[alike > SAME].unique()
    if not len(spelled):
        return None
    said = torch.zeros(len(table), dtype=torch.bool)
    said[spelled] = True
    return torch.argsort(torch.cat([spelled, torch.arange(len(table))[~said]])).int()


def order_of(places: Tensor) -> Tensor:
    """Row -> its token, (v)."""
    return torch.argsort(places)
