"""Which rows of an embedding deserve the finer precision: those of tokens that are said often.

Vocabularies begin with what was merged first, so a low number means a frequent token.  But what a model reads and draws
is said in the tokens that spell its pictures' names (visual_words.py) and that calibration data has, however rare they
are in books: they stand before all others.
Axes: v tokens of the vocabulary, u letters, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration

__all__ = ["order_of", "places_of"]

SAME = 0.999  # cosine of a letter and the row that it was copied from


@torch.no_grad()
def places_of(model: Unified, data: Calibration) -> Tensor:
    """Token -> its row (v)."""
    said = torch.zeros(model.config.transformer.vocab_size, dtype=torch.bool)
    said[data.texts] = True
    for prompt in data.prompts:
        said[model.encode(f" {prompt}", special=False)] = True
    said[_spelled(model)] = True
    tokens = torch.arange(len(said))
    return torch.argsort(torch.cat([tokens[said], tokens[~said]])).int()


def _spelled(model: Unified) -> Tensor:
    """Tokens that visual words are spelled with: their letters are copies of the embedding's rows."""
    words = getattr(model.image_encoder, "words", None)
    if words is None:
        return torch.zeros(0, dtype=torch.long)
    table = nn.functional.normalize(model.transformer.embed_tokens.weight, dim=-1)  # (v, w)
    alike, tokens = (nn.functional.normalize(words.letters, dim=-1) @ table.T).max(-1)  # (u)
    return tokens[alike > SAME]


def order_of(places: Tensor) -> Tensor:
    """Row -> its token, (v)."""
    return torch.argsort(places)
