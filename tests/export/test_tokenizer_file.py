"""A bundle's tokenizer.json opens sooner, and every text becomes the same tokens."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgemm.export.manifest import quick_to_open

TEXTS = ["a red heart and a blue fish", "❤️ naïve  café\n", "<|im_end|>heart", "#version of a fish"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|im_end|>"], show_progress=False
    )
    made.train_from_iterator(["a red heart and a blue fish, and another red heart of a fish"] * 3, trainer)
    return made


def test_the_same_tokens_come_of_merges_that_are_strings_and_a_vocabulary_in_order(trained):
    before = trained.to_str()
    after = quick_to_open(before)
    assert isinstance(json.loads(before)["model"]["merges"][0], list)
    assert isinstance(json.loads(after)["model"]["merges"][0], str)
    pieces = [piece.encode() for piece in json.loads(after)["model"]["vocab"]]
    assert pieces == sorted(pieces)
    again = Tokenizer.from_str(after.decode())
    assert [again.encode(text).ids for text in TEXTS] == [trained.encode(text).ids for text in TEXTS]
    assert again.get_vocab() == trained.get_vocab()


@pytest.mark.parametrize("pair", [["a ", "b"], ["#version", "x"]])
def test_merges_that_a_string_cannot_say_stay_pairs(pair):
    vocabulary = {piece: index for index, piece in enumerate([*pair, "".join(pair)])}
    before = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair)])).to_str()
    assert quick_to_open(before) == before.encode()


def test_a_tokenizer_without_merges_stays_as_it_is():
    before = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a")).to_str()
    assert quick_to_open(before) == before.encode()
