"""Tokenizers like those that people's checkpoints have, trained on a few lines in a moment."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["SPOKEN", "tokenizer", "unigram", "unspaced"]

SPOKEN = ("What is the capital of France?", "Describe the red heart, please.", "naïve café 日本 🎈")
CORPUS = [*SPOKEN, "a small boat on a lake. The quick brown fox jumps over the lazy dog, user assistant system"] * 8


def tokenizer(specials: list[str], words: list[str] = [], **named: Any) -> PreTrainedTokenizerFast:  # noqa: B006
    """Byte-level BPE, as GPT-2, SmolLM and Qwen have; `words` are made tokens that are not special."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens(words)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def unspaced(specials: list[str], **named: Any) -> PreTrainedTokenizerFast:
    """As Llama 1 and 2 have: blanks are a letter, one is put before the text, <s> is added at its start."""
    inner = _blanks_as_letters(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    every = ["<unk>", "<s>", "</s>", *specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=every, show_progress=False)
    inner.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    return _with_start(inner, **named)


def unigram(words: list[str]) -> PreTrainedTokenizerFast:
    """As Fuyu has: the likeliest pieces; `words` are pieces like any other, and so is a spelled <0x04>."""
    pieces = sorted(unspaced([]).get_vocab().items(), key=lambda pair: pair[1])
    scores = [(piece, -10 - number / 100) for piece, number in pieces] + [(word, 0.0) for word in words]
    return _with_start(_blanks_as_letters(models.Unigram(scores, unk_id=0, byte_fallback=True)))


def _blanks_as_letters(model: Any) -> Tokenizer:
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner


def _with_start(inner: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **named
    )
