"""An Emu3 folder: pictures are rows of codes, each with its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAEConfig,
)

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import tokenizer

__all__ = ["folder"]

EMU3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}{% else %}"
    "{% if loop.first %}{{ 'A helpful assistant. ' }}{% endif %}{{ ' ' + m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def folder(
    path: Path, seed: int = 0, side: int = 32, ratio: str = "3:2", area: int = 24 * 16, codes: int = 30, **changes: Any
) -> Path:
    """Reads squares of `side` pixels; draws pictures of `area` pixels, eight by eight a code."""
    image = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    visual = [f"<|visual token {code:06d}|>" for code in np.random.RandomState(seed).permutation(codes)]
    words = tokenizer(
        ["<pad>", "<bos>", "<eos>", "<|extra_200|>", *image.values(), *visual],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=image,
    )
    text = Emu3TextConfig(
        **{
            "vocab_size": len(words),
            **SMALL,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
            **changes,
        }
    )
    config = Emu3Config(
        text_config=text,
        vq_config=Emu3VQVAEConfig(
            codebook_size=codes,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=32,
        ),
        vocabulary_map=words.get_vocab(),
    )
    model = spread(Emu3ForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(path)
    eye = Emu3ImageProcessor(min_pixels=side * side, max_pixels=4 * side * side)
    Emu3Processor(eye, words, chat_template=EMU3).save_pretrained(path)
    said = json.loads((path / "processor_config.json").read_text())
    (path / "processor_config.json").write_text(json.dumps({**said, "ratio": ratio, "image_area": area}))
    return path
