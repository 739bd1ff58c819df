"""Tiny foreign models with random weights, written as the folders that people download; and the library's own answers.

Weights are drawn so wide that tokens vary: a model that always says the same would agree with anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    CLIPVisionConfig,
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    FuyuConfig,
    FuyuForCausalLM,
    FuyuProcessor,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

__all__ = [
    "SPOKEN",
    "chameleon_folder",
    "emu3_folder",
    "fuyu_folder",
    "janus_folder",
    "llama_folder",
    "llava_folder",
    "picture",
    "qwen3_vl_folder",
    "spread",
    "tokenizer",
    "unspaced",
]

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

JANUS = (  # blank lines and blanks where Janus-Pro's own has them
    "{% for m in messages %}{{ {'user': '<|User|>: ', 'assistant': '<|Assistant|>: '}.get(m['role'], 'System: ') }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '' if loop.first else '\n' }}<image_placeholder>"
    "{{ '' if loop.last else '\n' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '\n\n' if m['role'] == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)

QWEN_VL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
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


def janus_folder(
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
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
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


def chameleon_folder(path: Path, seed: int = 0, side: int = 16, codes: int = 24, **changes: Any) -> Path:
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
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
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


EMU3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}{% else %}"
    "{% if loop.first %}{{ 'A helpful assistant. ' }}{% endif %}{{ ' ' + m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def emu3_folder(
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
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
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


def fuyu_folder(path: Path, seed: int = 0, side: int = 24, patch: int = 8, **changes: Any) -> Path:
    """Tokens of pictures are no special ones, as the library's processor expects."""
    words = unigram(["|SPEAKER|", "|NEWLINE|"])
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
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


def qwen3_vl_folder(
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
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2 * sum(sections),
        "max_position_embeddings": 512,
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
