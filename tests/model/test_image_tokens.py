"""Pixels to tokens and back, checked against a picture whose every number says where it stands."""

from __future__ import annotations

import pytest
import torch

from edgemm.model.config import ImageTokensConfig
from edgemm.model.image_tokens import pixels_to_tokens, tokens_to_pixels

CONFIG = ImageTokensConfig(kind="patch", image_size=8, patch=4)


def test_a_token_is_channel_row_column_of_its_square():
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    tokens = pixels_to_tokens(pixels, CONFIG)
    assert tokens.shape == (2, CONFIG.token_count, CONFIG.token_width) == (2, 4, 48)
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):  # row-major
        square = pixels[:, :, top : top + 4, left : left + 4]
        assert torch.equal(tokens[:, number], square.reshape(2, -1) * 2 - 1)


def test_pixels_survive_the_way_there_and_back():
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tokens_to_pixels(pixels_to_tokens(pixels, CONFIG), CONFIG), pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("token", "pixel"), [(-3.0, 0.0), (-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (3.0, 1.0)])
def test_tokens_hold_minus_one_to_one_and_pixels_are_clipped(token, pixel):
    assert (tokens_to_pixels(torch.full((1, 4, 48), token), CONFIG) == pixel).all()
