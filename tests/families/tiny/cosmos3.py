"""A Cosmos3 folder of other sizes than the recorded ones, in shards, made with the two libraries that will read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families.tiny.published import change, in_shards, random_weights

__all__ = ["folder"]

SECTIONS, THETA = [6, 3, 3], 20_000.0
TEXT = {
    "hidden_size": 72, "head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5,
    "intermediate_size": 100, "rms_norm_eps": 1e-4, "vocab_size": 301, "attention_bias": True,
}  # fmt: skip
EYE = {"hidden_size": 36, "intermediate_size": 50, "patch_size": 6}
OF_EDGE = {"num_hidden_layers": 3, "num_attention_heads": 3, "num_patches": 25, "layer_norm_eps": 1e-4}
OF_OMNI = {
    "depth": 3, "num_heads": 3, "num_position_embeddings": 25, "out_hidden_size": 72, "deepstack_visual_indexes": [0, 1]
}  # fmt: skip
GENERATOR = {
    "rope_axes_dim": SECTIONS, "rope_theta": THETA, "latent_channel": 5, "latent_patch_size": 3, "patch_latent_dim": 45,
    "unified_3d_mrope_temporal_modality_margin": 777, "timestep_scale": 0.002,
}  # fmt: skip
AUTOENCODER = {
    "base_dim": 6, "decoder_base_dim": 10, "z_dim": 5, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True],
    "num_res_blocks": 2, "scale_factor_spatial": 8, "latents_mean": [0.3, -0.2, 0.1, 0.0, 0.5],
    "latents_std": [0.5, 1.5, 0.8, 1.1, 0.9],
}  # fmt: skip
PICTURES = {
    "patch_size": 6, "size": {"longest_edge": 4000, "shortest_edge": 600}, "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.3, 0.2, 0.25],
}  # fmt: skip
DRAWS = ("moe_gen", "added", ".add_", "to_add", "und_for_gen", "proj_in", "proj_out", "time_embedder")


def folder(path: Path, recorded: Path, seed: int = 5) -> Path:
    """All sizes and numbers are others, tokenizers and templates the same; three levels of autoencoder, not four."""
    import diffusers
    import transformers

    shutil.copytree(recorded, path, copy_function=shutil.copyfile)
    for file in path.rglob("*.safetensors"):
        file.unlink()
    config = json.loads((path / "config.json").read_text())
    rotary = config["text_config"]["rope_parameters"] | {"mrope_section": SECTIONS, "rope_theta": THETA}
    edge = "projector_hidden_size" in config
    change(
        path / "config.json",
        text_config=config["text_config"] | TEXT | {"rope_parameters": rotary, "max_position_embeddings": 1111},
        vision_config=config["vision_config"] | EYE | (OF_EDGE if edge else OF_OMNI),
        **({"projector_hidden_size": 44} if edge else {}),
    )
    change(path / "preprocessor_config.json", **PICTURES)
    change(path / "transformer" / "config.json", **TEXT, **GENERATOR)
    change(path / "vae" / "config.json", **AUTOENCODER)
    change(path / "scheduler" / "scheduler_config.json", flow_shift=2.5)

    generator = diffusers.Cosmos3OmniTransformer.from_config(_said(path / "transformer"))
    listed = in_shards(random_weights(generator, seed), path / "transformer", "diffusion_pytorch_model", 2)
    autoencoder = diffusers.AutoencoderKLWan.from_config(_said(path / "vae"))
    in_shards(_of_convolutions(autoencoder, seed), path / "vae", "diffusion_pytorch_model", 1)
    reader = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.from_pretrained(path))
    seen = {name: x for name, x in random_weights(reader, seed).items() if "visual" in name or "projector" in name}
    if not edge:
        seen = {name.removeprefix("model.visual."): x for name, x in seen.items()}
    (path / "vision_encoder").mkdir(exist_ok=True)
    in_shards(seen, path / "vision_encoder", "model", 1)
    places = {name: f"transformer/{file}" for name, file in listed.items() if not any(part in name for part in DRAWS)}
    places |= dict.fromkeys(seen, "vision_encoder/model.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def _said(place: Path) -> dict[str, Any]:
    return json.loads((place / "config.json").read_text())


def _of_convolutions(autoencoder: Any, seed: int) -> dict[str, Tensor]:
    """Of one tap in time's size: the others meet no picture."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, tensor in autoencoder.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            found[name] = (1 + 0.2 * noise).abs()
        elif tensor.ndim == 1:
            found[name] = 0.3 * noise
        else:
            found[name] = noise / (tensor[0].numel() / (tensor.shape[2] if tensor.ndim == 5 else 1)) ** 0.5
    return found
