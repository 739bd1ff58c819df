"""Text to ids and back; streams of bytes that are always whole characters."""

from __future__ import annotations

import random

import pytest

from edgemm.bundle.prompt import Tokenizer
from edgemm.errors import InputError
from edgemm.runtimes.text_loop import StreamDecoder
from tests.runtimes.tiny_bundle import byte_tokenizer

TEXTS = ["hello", "❤️ heart", "naïve café", "日本語", "👩‍👩‍👧", "a\ufffdb", "\ufffd", " two  spaces "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(byte_tokenizer().to_str(), encoding="utf-8")
    return Tokenizer(path)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_only_made_when_asked_for(tokenizer):
    assert tokenizer.encode("<|im_end|>", special=True) == [258]
    assert len(tokenizer.encode("<|im_end|>")) == len("<|im_end|>")


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_holds_back_half_a_character(tokenizer, text):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join([*pieces, decoder.flush()]) == text
    for piece in pieces:
        assert piece in text  # whole characters, or nothing


@pytest.mark.parametrize("seed", range(30))
def test_a_stream_of_any_bytes_joins_to_the_whole(tokenizer, seed):
    ids = [random.Random(seed * 1000 + i).randrange(259) for i in range(60)]
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in ids]
    assert "".join([*pieces, decoder.flush()]) == tokenizer.decode(ids)


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenizer.encode("\udcff")


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")
