"""A LLaVA folder: CLIP, a projector, Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import unspaced

__all__ = ["folder"]

VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}"
    "{% else %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ ' ' if m['role'] == 'user' else '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def folder(path: Path, seed: int = 0, side: int = 24, patch: int = 8, **changes: Any) -> Path:
    words = unspaced(["<image>", "<pad>"], pad_token="<pad>", extra_special_tokens={"image_token": "<image>"})
    text = LlamaConfig(
        **{
            "vocab_size": len(words),
            **SMALL,
            "num_key_value_heads": 4,
            "eos_token_id": words.eos_token_id,
            **changes,
        }
    )
    vision = CLIPVisionConfig(
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=side,
        patch_size=patch,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    model = spread(LlavaForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(path)
    eye = LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        eye,
        words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=VICUNA,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(path)
    return path
