"""A Chameleon folder: pictures are tokens of the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor, ChameleonVQVAEConfig
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import unspaced

__all__ = ["folder"]


def folder(path: Path, seed: int = 0, side: int = 16, codes: int = 24, **changes: Any) -> Path:
    """Codes stand in the vocabulary in no order: the name of each spells it, A for 0 to J for 9."""
    spelled = ["".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) for code in range(codes)]
    names = [f"IMGIMG{letters}Z" for letters in np.random.RandomState(seed).permutation(spelled)]
    image = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    words = unspaced(
        ["<reserved>", *image.values(), *names], sep_token="<reserved>", extra_special_tokens=image, pad_token="<unk>"
    )
    grid = side // 2
    config = ChameleonConfig(
        **{
            "vocab_size": len(words),
            **SMALL,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        },
        vq_config=ChameleonVQVAEConfig(
            embed_dim=6,
            num_embeddings=codes,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            resolution=side,
            attn_resolutions=None,
        ),
        vocabulary_map=words.get_vocab(),
        tie_word_embeddings=False,
    )
    spread(ChameleonForConditionalGeneration(config), seed).save_pretrained(path)
    eye = ChameleonImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    ChameleonProcessor(eye, words, image_seq_length=grid * grid).save_pretrained(path)
    return path
