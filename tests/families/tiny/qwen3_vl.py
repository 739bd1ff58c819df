"""A Qwen3-VL folder, or one of Cosmos3-Omni, whose reasoner it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import tokenizer

__all__ = ["folder"]

QWEN_VL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def folder(
    path: Path,
    seed: int = 0,
    side: int = 32,
    patch: int = 4,
    sections: tuple[int, int, int] = (2, 1, 1),
    deep: tuple[int, ...] = (0, 2),
    cosmos: bool = True,
    tied: bool = False,
    **changes: Any,
) -> Path:
    """Cosmos3-Omni's reasoner, or a Qwen3-VL; a picture is `side` pixels wide, and its tokens cover 2 x 2 patches."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    words = tokenizer(specials, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN_VL)
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), words.convert_tokens_to_ids(marks)))
    text = {
        "vocab_size": len(words),
        **SMALL,
        "num_hidden_layers": 3,
        "head_dim": 2 * sum(sections),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)},
        **changes,
    }
    vision = {
        "depth": 3,
        "hidden_size": 24,
        "num_heads": 2,
        "intermediate_size": 40,
        "patch_size": patch,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": list(deep),
    }
    kind, model = (
        (Cosmos3OmniConfig, Cosmos3OmniForConditionalGeneration)
        if cosmos
        else (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    )
    named = {f"{name}_token_id": number for name, number in ids.items()}
    config = kind(text_config=text, vision_config=vision, tie_word_embeddings=tied, **named)
    made = spread(model(config), seed)
    made.generation_config.eos_token_id = words.eos_token_id
    made.save_pretrained(path)
    words.save_pretrained(path)
    size = {"shortest_edge": 16, "longest_edge": side * side}
    Qwen2VLImageProcessorPil(size=size, patch_size=patch, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        path
    )
    return path
