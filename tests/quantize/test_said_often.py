"""Tokens that spell what pictures show stand first, however rare they are; a model that knows no words has no order."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from edgemm.model.unified import Unified
from edgemm.quantize import recipe
from edgemm.quantize.quantization import quantize
from edgemm.quantize.quantized_linear import swap
from edgemm.quantize.said_often import order_of, places_of
from edgemm.quantize.spec import HEAD
from tests.export.nano import nano, random_nano

SPELLED = [250, 7, 120]


@pytest.fixture(scope="module")
def wordy() -> Unified:
    config = nano()
    vision = dataclasses.replace(config.vision, words=5, word_tokens=2)
    model = random_nano(dataclasses.replace(config, vision=vision))
    model.image_encoder.words.letters.zero_()
    model.image_encoder.words.letters[: len(SPELLED)] = model.transformer.embed_tokens.weight[SPELLED]
    return model


def test_spelled_tokens_come_first_and_the_others_keep_their_order(wordy):
    places = places_of(wordy)
    assert places is not None
    order = order_of(places).tolist()
    assert order[:3] == sorted(SPELLED) and order[3:] == [n for n in range(264) if n not in SPELLED]
    assert places[250] == 2


def test_a_model_that_knows_no_words_has_no_order():
    assert places_of(random_nano()) is None


def test_a_rare_token_that_spells_a_picture_keeps_8_bits(wordy, monkeypatch):
    monkeypatch.setattr(recipe, "FREQUENT", 100)
    spec = quantize(copy.deepcopy(wordy), "int4", "fp16", {"text": "", "draw": ""})
    swapped = copy.deepcopy(wordy)
    swap(swapped, spec)
    off = (swapped.transformer.embed_tokens.weight - wordy.transformer.embed_tokens.weight).abs().mean(-1)
    assert spec.layer(HEAD).rows == 100
    assert off[250] < 0.3 * off[249] and off[120] < 0.3 * off[121]
    assert torch.equal(off < 0.3 * off[249], torch.isin(torch.arange(264), order_of(places_of(wordy))[:100]))  # type: ignore[arg-type]
