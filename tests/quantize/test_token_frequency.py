"""Tokens that spell pictures, and those of calibration data and templates, stand first, however rare they are."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tokenizers import pre_tokenizers

from edgemm.model.unified import Unified
from edgemm.quantize import layers as recipe
from edgemm.quantize.calibration import Calibration, order_of, places_of, read_calibration, shipped_text
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import HEAD, REST
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


DATA = Calibration(torch.tensor([[5, 90, 5]]), ("ab",), "")
AROUND = {257, 258}  # <|im_start|> and <|im_end|>: bytes are the other tokens, in the order of their symbols
AROUND |= {sorted(pre_tokenizers.ByteLevel.alphabet()).index(symbol) for symbol in "userassistantDrawĊ"}


def test_what_is_said_comes_first_and_the_others_keep_their_order(wordy):
    said = sorted({*SPELLED, 5, 90, *wordy.encode(" ab", special=False), *AROUND})
    order = order_of(places_of(wordy, DATA)).tolist()
    assert order[: len(said)] == said
    assert order[len(said) :] == [n for n in range(264) if n not in said]
    assert places_of(wordy, DATA)[250] == said.index(250)


def test_a_model_that_knows_no_words_has_only_the_data_to_go_by():
    space, a, b = random_nano().encode(" ab", special=False)
    said = sorted({5, 90, space, a, b} | AROUND)
    assert order_of(places_of(random_nano(), DATA))[: len(said)].tolist() == said


def test_rare_rows_are_rounded_for_what_the_head_reads_where_text_is_read(monkeypatch):
    """Their logits are nearer on a text that was not calibrated on; without data it is k-quant."""
    monkeypatch.setattr(recipe, "FREQUENT", {4: 100, 8: 100})
    model = random_nano()
    ids = torch.tensor([model.encode(shipped_text("evaluation.txt")[:400])])
    hidden, _ = model.transformer(model.transformer.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    off = {}
    for text, method in (("awq", "gptq"), ("", "kquant")):
        spec = quantize(copy.deepcopy(model), QuantizeOptions("int4", "fp16", f"text={text},draw="))
        assert spec.layer(HEAD + REST).method == method
        assert spec.layer(HEAD).method == "rtn"
        swapped = copy.deepcopy(model)
        swap(swapped, spec)
        off[method] = (swapped.transformer.logits(hidden) - model.transformer.logits(hidden)).square().mean()
    assert off["gptq"] < 0.8 * off["kquant"]


def test_a_rare_token_that_spells_a_picture_keeps_8_bits(wordy, monkeypatch):
    monkeypatch.setattr(recipe, "FREQUENT", {4: 100, 8: 100})
    spec = quantize(copy.deepcopy(wordy), QuantizeOptions("int4", "fp16", ""))
    swapped = copy.deepcopy(wordy)
    swap(swapped, spec)
    off = (swapped.transformer.embed_tokens.weight - wordy.transformer.embed_tokens.weight).abs().mean(-1)
    assert spec.layer(HEAD).rows == 100
    assert off[250] < 0.3 * off[249] and off[120] < 0.3 * off[121]
    fine = order_of(places_of(wordy, read_calibration(None, wordy)))[:100]
    assert torch.equal(off < 0.3 * off[249], torch.isin(torch.arange(264), fine))
