"""Pictures on their way into the residual stream."""

from __future__ import annotations

import torch

from edgemm.model import checkpoint
from edgemm.model.vision import PatchStem
from tests.model.tiny import micro


def test_patches_are_row_major_and_hold_minus_one_to_one():
    stem = PatchStem(micro().vision)
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[0, :, 8:16, 16:24] = 1.0  # second row, third column of 8 x 8 squares
    features = stem(pixels)
    assert features.shape == (1, 16, 192)
    assert (features[0, 1 * 4 + 2] == 1).all()
    assert (features[0, [i for i in range(16) if i != 6]] == -1).all()


def test_each_token_depends_on_its_own_square_alone(model):
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.image_encoder(pixels)
    pixels[0, :, 0:8, 24:32] = 0
    moved = (model.image_encoder(pixels) != before).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [3]


def test_a_new_projections_tokens_spread_like_the_embeddings():
    model = checkpoint.build(micro())
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spread = model.transformer.embed_tokens.weight.std()
    torch.testing.assert_close(model.image_encoder(pixels).std(), spread, rtol=0.05, atol=0)
