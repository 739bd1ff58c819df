"""Tiny foreign models with random weights, written as the folders that people download; and the library's own answers.

Weights are drawn so wide that tokens vary: a model that always says the same would agree with anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

__all__ = ["SPOKEN", "llama_folder", "llava_folder", "picture", "spread", "tokenizer", "unspaced"]

SPOKEN = ("What is the capital of France?", "Describe the red heart, please.", "naïve café 日本 🎈")
CORPUS = [*SPOKEN, "a small boat on a lake. The quick brown fox jumps over the lazy dog, user assistant system"] * 8
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}"
    "{% else %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ ' ' if m['role'] == 'user' else '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


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
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    every = ["<unk>", "<s>", "</s>", *specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=every, show_progress=False)
    inner.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **named
    )


def spread(model: Any, seed: int, by: float = 6.0) -> Any:
    """Fresh weights that make its answers vary: no layer's answer is small beside the embedding that passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(0, by / 4 / weight.shape[1] ** 0.5, generator=generator)
            elif weight.dim() == 4:
                weight.normal_(0, 1 / weight[0].numel() ** 0.5, generator=generator)
            elif weight.dim() >= 1 and name.endswith("weight") and weight.dim() == 1:
                weight.normal_(1, 0.1, generator=generator)
            else:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def picture(seed: int, width: int = 40, height: int = 40) -> np.ndarray:
    """uint8 (height, width, 3): smooth colours, as photographs have."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * a + y * b + c) for a, b, c in generator.uniform(1, 6, (3, 3))]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def llama_folder(path: Path, seed: int = 0, chat: bool = True, **changes: Any) -> Path:
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


def llava_folder(path: Path, seed: int = 0, side: int = 24, patch: int = 8, **changes: Any) -> Path:
    words = unspaced(["<image>", "<pad>"], pad_token="<pad>", extra_special_tokens={"image_token": "<image>"})
    text = LlamaConfig(
        **{
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
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
