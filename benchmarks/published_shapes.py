"""Folders of published shapes, whose numbers are drawn by chance, or are nowhere at all.

Configs are those of the recorded tiny folders (tests/fixtures/golden, shared/golden) with the published sizes in them;
tokenizers stay theirs.  Weights are bfloat16, written shard by shard, the same block of chance over and over: they cost
what trained ones cost.  Words stand far apart, and what a layer adds to them is small: where a layer's answer drowns
the word, the next one makes more of each rounding, and 24 layers later nothing is left of what was asked.
Each maker takes a folder and the share of every tower's layers to make, and answers with the words that name what it
made to `edgemm export`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GOLDEN = (ROOT / "tests" / "fixtures" / "golden", ROOT.parent / "shared" / "golden")
SHARD_BYTES = 1 << 30
SPREAD, ADDED = 0.02, 0.1  # of weights; and how much smaller those are that write to a residual stream
WORDS = 1.0  # spread of the words' own vectors, before a layer adds to them
LIKELY, RARE = 16, 0.05  # words that a head may say, and the weight of all others
WRITERS = ("o_proj", "down_proj", "to_out", "to_add_out", "out_proj", "fc2", "proj.weight", "conv2")

Shapes = dict[str, tuple[int, ...]]
on_paper = False
BLOCK = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))


def write(folder: Path, name: str, shapes: Shapes, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Tensors, shard after shard; tensor -> file.  On paper, files that take no room."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    filled = 0
    for tensor, shape in shapes.items():
        filled += 2 * math.prod(shape)
        if filled > shard_bytes and shards[-1]:
            shards.append([])
            filled = 2 * math.prod(shape)
        shards[-1].append(tensor)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"{name}.safetensors" if len(shards) == 1 else f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        if on_paper:
            hollow({tensor: shapes[tensor] for tensor in names}, folder / file)
        else:
            save_file({tensor: numbers(tensor, shapes[tensor]) for tensor in names}, folder / file)
        places |= dict.fromkeys(names, file)
    return places


def hollow(shapes: Shapes, path: Path) -> None:
    """A file whose numbers nobody wrote: all are zero, and lie nowhere."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms of ones, biases of zeros, the rest by chance."""
    if name.endswith(("bias", "grn.beta")):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name or name.endswith("gamma"):
        return torch.ones(shape, dtype=torch.bfloat16)
    count = math.prod(shape)
    spread = WORDS if "embed_tokens" in name else SPREAD * (ADDED if any(writer in name for writer in WRITERS) else 1)
    start = sum(name.encode()) * 7919 % (len(BLOCK) // 2)
    block = (BLOCK[start:] * spread).bfloat16()
    made = block.repeat(-(-count // len(block)))[:count].reshape(shape)
    if "lm_head" in name:  # else the likeliest of all words is ahead of the next by less than int4 moves them
        few = torch.arange(shape[0]) % max(1, shape[0] // LIKELY) == 0
        made = made * torch.where(few, 1.0, RARE)[:, None].bfloat16()
    return made


def recorded(name: str) -> Path:
    return next(place / name for place in GOLDEN if (place / name).is_dir())


def copied(source: Path, folder: Path) -> None:
    """All but weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), copy_function=shutil.copyfile)


def changed(path: Path, changes: dict[str, Any]) -> None:
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            document[key] = document.get(key, {}) | value
        else:
            document[key] = value
    path.write_text(json.dumps(document))


def share(layers: int, of: float) -> int:
    return max(1, round(layers * of))


def janusflow(folder: Path, layers: float) -> list[str]:
    """deepseek-ai/JanusFlow-1.3B and stabilityai/sdxl-vae."""
    from edgemm.families import janusflow as family
    from edgemm.families.autoencoder_kl import autoencoder_skeleton
    from tests.families.golden import found_at

    vae = folder.with_name("vae")
    copied(recorded("janusflow") / "checkpoint", folder)
    copied(recorded("janusflow") / "vae", vae)
    config = json.loads((folder / "config.json").read_text())
    config["language_config"] |= {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": share(24, layers),
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102_400,
    }  # fmt: skip
    sizes = {
        "width": 1024,
        "layers": share(24, layers),
        "heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4,
        "image_size": 384,
    }
    config["vision_und_enc_config"]["params"] |= sizes
    for part in ("enc", "dec"):
        config[f"vision_gen_{part}_config"]["params"] |= {"block_out_channels": [768], "hidden_size": 2048}
    config["vision_gen_dec_config"]["params"]["in_channels"] = 768
    (folder / "config.json").write_text(json.dumps(config))
    changed(folder / "preprocessor_config.json", {"image_size": 384})
    changed(folder / "processor_config.json", {"num_image_tokens": 576})
    changed(
        vae / "config.json", {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    )
    model = family.skeleton(found_at(folder))
    write(folder, "model", {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    decoder = autoencoder_skeleton(vae).state_dict()
    write(vae, "diffusion_pytorch_model", {name: tuple(tensor.shape) for name, tensor in decoder.items()})
    return [str(folder), "--vae", str(vae)]


def cosmos3_edge(folder: Path, layers: float) -> list[str]:
    """nvidia's Cosmos3-Edge; sizes worked back from the counts in shared/golden/cosmos3.md; the autoencoder's encoder,
    which nobody reads, is left out.

    28 layers of 2048 (16 heads of 128 over 8, relu2 of 9216) read 1,409M and draw 1,415M; 131,072 words twice 537M;
    SigLIP 2 so400m with its projector 489M; Wan 2.2's decoder 555M.
    """
    copied(recorded("cosmos3-edge") / "checkpoint", folder)
    depth, eye_depth = share(28, layers), share(27, layers)
    text = {
        "hidden_size": 2048, "intermediate_size": 9216, "num_hidden_layers": depth, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131_072,
    }  # fmt: skip
    sections = [24, 20, 20]
    eye = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": eye_depth,
        "num_patches": 256, "patch_size": 16,
    }  # fmt: skip
    rotary = {"mrope_section": sections, "rope_theta": 100_000_000.0, "rope_type": "default"}
    config = folder / "config.json"
    changed(
        config,
        {"text_config": {**text, "rope_parameters": rotary}, "vision_config": eye, "projector_hidden_size": 11_264},
    )
    drawing = {"latent_channel": 48, "patch_latent_dim": 192, "rope_axes_dim": sections}
    changed(folder / "transformer" / "config.json", {**text, **drawing})
    wan_published_22(folder)
    changed(
        folder / "preprocessor_config.json",
        {"patch_size": 16, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
    )
    names = write(folder / "transformer", "diffusion_pytorch_model", cosmos3_towers(depth))
    seen = write(folder / "vision_encoder", "model", cosmos3_eye(eye_depth))
    reads = {
        name: f"transformer/{file}"
        for name, file in names.items()
        if "gen" not in name and "add" not in name and not name.startswith(("proj", "time"))
    }
    reads |= {name: f"vision_encoder/{file}" for name, file in seen.items()}
    index = {"metadata": {"total_size": 0}, "weight_map": reads}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [str(folder)]


def cosmos3_towers(
    depth: int, width: int = 2048, inner: int = 9216, groups: int = 1024, words: int = 131_072
) -> Shapes:
    found: Shapes = {"embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    for layer in range(depth):
        at = f"layers.{layer}."
        for part, gen in (("mlp", ""), ("mlp_moe_gen", "_moe_gen")):
            found |= {f"{at}{part}.up_proj.weight": (inner, width), f"{at}{part}.down_proj.weight": (width, inner)}
            found |= {f"{at}{norm}{gen}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for pattern, last in (("to_{}", "to_out"), ("add_{}_proj", "to_add_out")):
            rows = {"q": width, "k": groups, "v": groups}
            found |= {f"{at}self_attn.{pattern.format(part)}.weight": (size, width) for part, size in rows.items()}
            found[f"{at}self_attn.{last}.weight"] = (width, width)
        found |= {
            f"{at}self_attn.{norm}.weight": (128,) for norm in ("k_norm_und_for_gen", "norm_added_k", "norm_added_q")
        }
    found |= {"norm.weight": (width,), "norm_moe_gen.weight": (width,)}
    for name, shape in {
        "proj_in": (width, 192),
        "proj_out": (192, width),
        "time_embedder.linear_1": (width, 256),
        "time_embedder.linear_2": (width, width),
    }.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def cosmos3_eye(depth: int, width: int = 1152, inner: int = 4304) -> Shapes:
    linear = {"model.visual.embeddings.patch_embedding": (width, 768)}
    linear |= {"model.projector.linear_fc1": (11_264, 4 * width), "model.projector.linear_fc2": (2048, 11_264)}
    norms = ["model.visual.post_layernorm", "model.projector.norm"]
    for layer in range(depth):
        at = f"model.visual.encoder.layers.{layer}."
        linear |= {f"{at}self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        linear |= {f"{at}mlp.fc1": (inner, width), f"{at}mlp.fc2": (width, inner)}
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
    found: Shapes = {"model.visual.embeddings.position_embedding.weight": (256, width)}
    for name, shape in [*linear.items(), *((norm, (width,)) for norm in norms)]:
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def cosmos3_omni(folder: Path, layers: float) -> list[str]:
    """Cosmos3's other kind in Qwen3-VL-8B's shape, its generator as large; configs and no weights."""
    copied(recorded("cosmos3-omni") / "checkpoint", folder)
    text = {
        "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": share(36, layers),
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    }  # fmt: skip
    eye = {
        "hidden_size": 1152, "intermediate_size": 4304, "depth": share(27, layers), "num_heads": 16, "patch_size": 16,
        "num_position_embeddings": 2304, "out_hidden_size": 4096,
        "deepstack_visual_indexes": [layer for layer in (8, 16, 24) if layer < share(27, layers)],
    }  # fmt: skip
    sections = [24, 20, 20]
    rotary = {"mrope_interleaved": True, "mrope_section": sections, "rope_theta": 5e6, "rope_type": "default"}
    changed(folder / "config.json", {"text_config": {**text, "rope_parameters": rotary}, "vision_config": eye})
    drawing = {"latent_channel": 48, "patch_latent_dim": 192, "rope_axes_dim": sections}
    changed(folder / "transformer" / "config.json", {**text, **drawing})
    wan_published_22(folder)
    return [str(folder)]


def wan_published_22(folder: Path) -> None:
    """Wan 2.2's autoencoder, without its encoder."""
    means = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    changed(
        folder / "vae" / "config.json",
        {"base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "z_dim": 48, "num_res_blocks": 2, **means},
    )
    write(folder / "vae", "diffusion_pytorch_model", wan_decoder([1024, 1024, 1024, 512, 256], 3, 48), 1 << 40)


def wan_decoder(widths: list[int], blocks: int, channels: int) -> Shapes:
    """Wan 2.2's, as diffusers names it."""
    found: Shapes = {}

    def convolution(name: str, out: int, into: int, *kernel: int) -> None:
        found.update({f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)})

    def residual(name: str, into: int, out: int) -> None:
        convolution(f"{name}.conv1", out, into, 3, 3, 3)
        convolution(f"{name}.conv2", out, out, 3, 3, 3)
        found.update({f"{name}.norm1.gamma": (into, 1, 1, 1), f"{name}.norm2.gamma": (out, 1, 1, 1)})
        if into != out:
            convolution(f"{name}.conv_shortcut", out, into, 1, 1, 1)

    convolution("post_quant_conv", channels, channels, 1, 1, 1)
    convolution("decoder.conv_in", widths[0], channels, 3, 3, 3)
    middle = "decoder.mid_block"
    for number in range(2):
        residual(f"{middle}.resnets.{number}", widths[0], widths[0])
    convolution(f"{middle}.attentions.0.to_qkv", 3 * widths[0], widths[0], 1, 1)
    convolution(f"{middle}.attentions.0.proj", widths[0], widths[0], 1, 1)
    found[f"{middle}.attentions.0.norm.gamma"] = (widths[0], 1, 1)
    for level, out in enumerate(widths[1:]):
        at, into = f"decoder.up_blocks.{level}", widths[level]
        for number in range(blocks):
            residual(f"{at}.resnets.{number}", into if number == 0 else out, out)
        if level < len(widths) - 2:
            convolution(f"{at}.upsampler.resample.1", out, out, 3, 3)
        if level < len(widths) - 3:
            convolution(f"{at}.upsampler.time_conv", 2 * out, out, 3, 1, 1)
    found["decoder.norm_out.gamma"] = (widths[-1], 1, 1, 1)
    convolution("decoder.conv_out", 12, widths[-1], 3, 3, 3)
    return found


def qwen2(layers: float) -> dict[str, int]:
    """Qwen2.5-7B's, which BAGEL began with."""
    return {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": share(28, layers),
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    }  # fmt: skip


def bagel(folder: Path, layers: float) -> list[str]:
    """ByteDance-Seed/BAGEL-7B-MoT: every layer twice, SigLIP so400m, and FLUX's autoencoder."""
    from edgemm.families import bagel as family
    from tests.families.golden import found_at

    copied(recorded("bagel") / "checkpoint", folder)
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": share(27, layers),
        "num_attention_heads": 16, "patch_size": 14, "image_size": 980,
    }  # fmt: skip
    changed(folder / "llm_config.json", qwen2(layers))
    changed(folder / "vit_config.json", vision)
    shapes = {name: tuple(tensor.shape) for name, tensor in family.skeleton(found_at(folder)).state_dict().items()}
    inside = {name.removeprefix("vae."): shape for name, shape in shapes.items() if name.startswith("vae.")}
    whole = {name: shape for name, shape in shapes.items() if not name.startswith("vae.")}
    write(folder, "ema", whole, 1 << 40)
    write(folder, "ae", inside, 1 << 40)
    return [str(folder)]


def showo2(folder: Path, layers: float) -> list[str]:
    """showlab/show-o2-1.5B with Qwen2.5-1.5B, SigLIP so400m and Wan 2.1's autoencoder, 432 pixels a side."""
    from edgemm.families import showo2 as family
    from edgemm.model.pretrained import check_tensors
    from tests.families.golden import found_at

    others = {name: folder.with_name(name) for name in ("llm", "clip", "vae")}
    copied(recorded("showo2") / "checkpoint", folder)
    for name, place in others.items():
        copied(recorded("showo2") / name, place)
    text = {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": share(28, layers),
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": share(27, layers),
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    }  # fmt: skip
    head = {
        "head_hidden_size": 2048, "head_head_dim": 64, "head_heads": 32, "head_kv": 8, "head_intermediate_size": 8192,
        "num_diffusion_layers": share(10, layers),
    }  # fmt: skip
    grid = {f"{what}_latent_{side}": 27 for what in ("image", "video") for side in ("height", "width")}
    own = {"hidden_size": 1536, "clip_latent_dim": 1152, "llm_vocab_size": 151_669, **head, **grid}
    changed(folder / "config.json", own)
    changed(others["llm"] / "config.json", text)
    changed(others["clip"] / "config.json", {"vision_config": vision})
    tiny = check_tensors(recorded("showo2") / "vae" / "Wan2.1_VAE.safetensors")
    write(others["vae"], "Wan2.1_VAE", {name: wan_published(name, shape) for name, shape in tiny.items()}, 1 << 40)
    model = family.skeleton(found_at(folder, **others))
    stored = {name: tuple(x.shape) for name, x in model.state_dict().items() if not name.startswith("vae.")}
    write(folder, "pytorch_model", stored)
    parts = [f"--component={name}={place}" for name, place in others.items() if name != "vae"]
    return [str(folder), "--vae", str(others["vae"]), *parts]


def wan_published(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Wan 2.1's, whose layers are 24 times as wide as the recorded ones; latents and colours are as many."""
    if name.startswith(("conv1", "conv2")):
        return shape
    sides = {"decoder.conv1.weight": (24, 1), "encoder.conv1.weight": (24, 1), "encoder.head.2.weight": (1, 24)}
    sides |= {"decoder.head.2.weight": (1, 24), "decoder.head.2.bias": (1,), "encoder.head.2.bias": (1,)}
    times = sides.get(name, (24, 24 if name.endswith("weight") else 1))
    return tuple(size * more for size, more in zip(shape, (*times, 1, 1, 1)))


def mobileo(folder: Path, layers: float) -> list[str]:
    """Amshaker/Mobile-O-0.5B: FastVLM-0.5B, SANA 600M at 512 pixels, and DC-AE."""
    from edgemm.families import mobileo as family
    from edgemm.families.mobileo_layers import skeleton
    from tests.families.golden import found_at

    sana = folder.with_name("sana")
    copied(recorded("mobileo") / "checkpoint", folder)
    copied(recorded("mobileo") / "sana", sana)
    text = {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": share(24, layers),
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "mm_hidden_size": 3072,
    }  # fmt: skip
    changed(folder / "config.json", {**text, "mm_vision_tower": "mobileclip_l_1024"})
    drawing = {
        "num_layers": share(28, layers), "num_attention_heads": 36, "attention_head_dim": 32, "sample_size": 16,
        "num_cross_attention_heads": 16, "cross_attention_head_dim": 72, "cross_attention_dim": 1152,
        "caption_channels": 2304,
    }  # fmt: skip
    changed(sana / "transformer" / "config.json", drawing)
    widths = {f"{side}_block_out_channels": [128, 256, 512, 512, 1024, 1024] for side in ("encoder", "decoder")}
    depths = {"encoder_layers_per_block": [2, 2, 2, 3, 3, 3], "decoder_layers_per_block": [3] * 6}
    changed(sana / "vae" / "config.json", {**widths, **depths, "attention_head_dim": 32})
    model = skeleton(found_at(folder, sana=sana))
    assert family.NEEDS.keys() == {"sana"}
    write(folder, "model", {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    return [str(folder), f"--component=sana={sana}"]


MODELS = {
    "janusflow": janusflow,
    "cosmos3-edge": cosmos3_edge,
    "cosmos3-omni": cosmos3_omni,  # on paper
    "bagel": bagel,
    "showo2": showo2,
    "mobileo": mobileo,
}
