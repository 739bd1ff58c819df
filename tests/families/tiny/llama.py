"""A SmolLM-like or a Llama-2-like folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tests.families.tiny.weights import spread
from tests.families.tiny.words import tokenizer, unspaced

__all__ = ["folder"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def folder(path: Path, seed: int = 0, chat: bool = True, **changes: Any) -> Path:
    """A SmolLM-like chat model, tied; or with `chat` off a Llama-2-like one, untied, that continues text."""
    if chat:
        named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
        words = tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **named)
    else:
        words = unspaced([])
    config = LlamaConfig(
        **{
            "vocab_size": len(words) + 3,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": chat,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            **changes,
        }
    )
    spread(LlamaForCausalLM(config), seed).save_pretrained(path)
    words.save_pretrained(path)
    return path
