"""A Janus folder: it reads by one encoder and draws by another one's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import unspaced

__all__ = ["folder"]

JANUS = (  # blank lines and blanks where Janus-Pro's own has them
    "{% for m in messages %}{{ {'user': '<|User|>: ', 'assistant': '<|Assistant|>: '}.get(m['role'], 'System: ') }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '' if loop.first else '\n' }}<image_placeholder>"
    "{{ '' if loop.last else '\n' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '\n\n' if m['role'] == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


def folder(
    path: Path,
    seed: int = 0,
    side: int = 16,
    patch: int = 4,
    codes: int = 40,
    vq: dict[str, Any] | None = None,
    by: float = 6.0,
    **changes: Any,
) -> Path:
    """A picture is `side` pixels wide and drawn with (side / patch)**2 codes; `vq` changes its tokenizer's sizes, `by`
    says how much a layer changes what passes through it."""
    image = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    specials = ["<pad>", *image.values(), "<|User|>", "<|Assistant|>"]
    words = unspaced(specials, pad_token="<pad>", extra_special_tokens=image)
    text = LlamaConfig(
        **{
            "vocab_size": len(words),
            **SMALL,
            "pad_token_id": words.pad_token_id,
            "eos_token_id": words.eos_token_id,
            **changes,
        }
    )
    width = text.hidden_size
    config = JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
            projection_dim=width,
            num_image_tokens=(side // patch) ** 2,
        ),
        vq_config=JanusVQVAEConfig(
            **{
                "embed_dim": 6,
                "num_embeddings": codes,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": width,
                "image_token_embed_dim": width,
                **(vq or {}),
            }
        ),
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    model = spread(JanusForConditionalGeneration(config), seed, by)
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        guidance_scale=5,
        generation_kwargs={"boi_token_id": words.convert_tokens_to_ids("<begin_of_image>")},
    )
    model.save_pretrained(path)
    eye = JanusImageProcessorPil(
        size={"height": side, "width": side}, min_size=1, image_mean=[0.5] * 3, image_std=[0.4, 0.5, 0.6]
    )
    count = (side // patch) ** 2
    JanusProcessor(eye, words, chat_template=JANUS, num_image_tokens=count).save_pretrained(path)
    return path
