"""A micro that knows words: its tokenizer is made by the tokenizers library, of a page that edgemm ships."""

from __future__ import annotations

import dataclasses

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgemm.model.designs import variant
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import shipped_text
from tests.model.tiny import micro, random_micro

__all__ = ["SIZE", "trained", "worded"]

SIZE = 900
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def trained(byte_level: bool = True, size: int = SIZE) -> Tokenizer:
    """Of the shipped page, by the library: letters are bytes, or characters with bytes for all others."""
    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
        letters = []
    bytes_of = [] if byte_level else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL + bytes_of, initial_alphabet=letters)
    pages = [shipped_text(name) for name in ("calibration.txt", "evaluation.txt")[: 1 + (size > SIZE)]]
    tokenizer.train_from_iterator("".join(pages).splitlines(), trainer)
    return tokenizer


def worded(size: int = SIZE, experts: str = "mot") -> Unified:
    """A micro with that tokenizer in the place of bytes."""
    config = variant(micro(), experts)
    shape = dataclasses.replace(config.transformer, vocab_size=size)
    model = Unified(dataclasses.replace(config, transformer=shape), trained(size=size).to_str())
    rows = torch.randn(size, shape.width, generator=torch.Generator().manual_seed(3))
    model.load_state_dict(random_micro(config).state_dict() | {"transformer.embed_tokens.weight": rows})
    return model.eval().requires_grad_(False)
