"""A Fuyu folder: patches go straight into the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import FuyuConfig, FuyuForCausalLM, FuyuProcessor
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from tests.families.tiny.weights import SMALL, spread
from tests.families.tiny.words import unigram

__all__ = ["folder"]


def folder(path: Path, seed: int = 0, side: int = 24, patch: int = 8, **changes: Any) -> Path:
    """Tokens of pictures are no special ones, as the library's processor expects."""
    words = unigram(["|SPEAKER|", "|NEWLINE|"])
    text = {
        "vocab_size": len(words),
        **{size: number for size, number in SMALL.items() if size != "num_key_value_heads"},
        "num_attention_heads": 2,
        "hidden_act": "relu2",
        "qk_layernorm": True,
        "model_type": "persimmon",
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
        **changes,
    }
    place = words.convert_tokens_to_ids("|SPEAKER|")
    config = FuyuConfig(text_config=text, image_size=side, patch_size=patch, image_token_id=place)
    model = spread(FuyuForCausalLM(config), seed)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(path)
    eye = FuyuImageProcessorPil(
        size={"height": side, "width": side}, patch_size={"height": patch, "width": patch}, image_std=0.4
    )
    FuyuProcessor(eye, words).save_pretrained(path)
    return path
