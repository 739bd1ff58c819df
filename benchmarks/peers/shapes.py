"""Two models with random weights that the others' pipelines know, for what no peer does with edgemm's own.

    python shapes.py llava FOLDER/float32 TARGET     in the environment of transformers + torch
    python shapes.py sd3 - TARGET

`llava`: LLaVA-1.5's design (arXiv:2304.08485), CLIP's ViT-B/16 at 224 pixels (196 tokens) before SmolLM2-135M, whose
weights alone are not random.  Beside the folder, what llama.cpp's converters want of it: the parts, each its own.
`sd3`: Stable Diffusion 3's design (arXiv:2403.03206) in sticker-small's sizes: 15 million parameters that denoise, 8
layers over 64 tokens for 64 pixels, 134 million that read the prompt; its autoencoder is as small as it may be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIDE, PATCH = 224, 16
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ ' ' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava(source: Path, target: Path) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(str(source))
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.image_token = "<image>"
    text = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    text.resize_token_embeddings(len(words), pad_to_multiple_of=64)
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    place = words.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text.config, image_token_index=place)
    )
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(target)
    eye = LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        eye, words, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(target)  # fmt: skip
    _apart(model, text, words, eye, target.with_name(target.name + "-parts"))


def _apart(model: Any, text: Any, words: Any, eye: Any, target: Path) -> None:
    import torch

    text.save_pretrained(target / "text")
    words.save_pretrained(target / "text")
    model.model.vision_tower.save_pretrained(target / "eye")
    eye.save_pretrained(target / "eye")
    linear = {"0": model.model.multi_modal_projector.linear_1, "2": model.model.multi_modal_projector.linear_2}
    named = {
        f"model.mm_projector.{place}.{kind}": getattr(layer, kind).detach()
        for place, layer in linear.items()
        for kind in ("weight", "bias")
    }
    torch.save(named, target / "eye" / "llava.projector")


def sd3(_: Path, target: Path) -> None:
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    reads = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 13}
    reader = CLIPTextConfig(**reads, projection_dim=512, vocab_size=49408, max_position_embeddings=77)
    denoiser = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=16, out_channels=16, num_layers=8, attention_head_dim=32,
        num_attention_heads=7, joint_attention_dim=1024, caption_projection_dim=224, pooled_projection_dim=1024,
        pos_embed_max_size=16,
    )  # fmt: skip
    pixels = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8] * 4, latent_channels=16, norm_num_groups=4, sample_size=64, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip
    readers = [CLIPTextModelWithProjection(reader).eval() for _ in range(2)]
    words = _clip_tokenizer(target.with_name(target.name + "-words"))
    StableDiffusion3Pipeline(
        transformer=denoiser, scheduler=FlowMatchEulerDiscreteScheduler(), vae=pixels, text_encoder=readers[0],
        tokenizer=words, text_encoder_2=readers[1], tokenizer_2=words, text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(target)  # fmt: skip
    parts = {"denoiser": denoiser, "readers": torch.nn.ModuleList(readers), "autoencoder": pixels}
    count = {name: sum(numbers.numel() for numbers in part.parameters()) for name, part in parts.items()}
    print(json.dumps(count))


def _clip_tokenizer(folder: Path) -> Any:
    """CLIP's byte-level tokenizer without a single merge: letters are tokens, and prompts are cut or filled to 77."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


if __name__ == "__main__":
    {"llava": llava, "sd3": sd3}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
