"""Folders of BAGEL and Mobile-O of other sizes than the recorded ones: nothing may be taken from those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from edgemm.families import mobileo
from edgemm.families.bagel_layers import BagelModel, BagelSizes
from edgemm.families.fastvit import FastViT, FastViTSizes
from edgemm.families.flux_autoencoder import AutoencoderSizes
from edgemm.families.sana import Connector, ConnectorSizes
from tests.families.golden import found_at

__all__ = ["bagel_folder", "change", "in_shards", "mobileo_folder", "random_weights"]

AUTOENCODER = AutoencoderSizes(32, (1, 2), 2, 4)
SIZES = BagelSizes(
    vocab=272, width=48, hidden=80, depth=2, heads=6, kv_heads=3, epsilon=1e-5, rope_theta=1e4,
    vision_width=24, vision_hidden=40, vision_depth=1, vision_heads=3, vision_patch=8, vision_side=14,
    vision_epsilon=1e-3, vision_act="gelu",
    latent_patch=2, latent_side=12, autoencoder=AUTOENCODER,
)  # fmt: skip


def bagel_folder(recorded: Path, path: Path, seed: int = 5) -> Path:
    """Two levels of autoencoder in place of four, other tables, patches, heads."""
    path.mkdir(parents=True)
    for file in recorded.iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copyfile(file, path / file.name)
    text = {
        "hidden_size": SIZES.width, "intermediate_size": SIZES.hidden, "num_hidden_layers": SIZES.depth,
        "num_attention_heads": SIZES.heads, "num_key_value_heads": SIZES.kv_heads, "rms_norm_eps": SIZES.epsilon,
        "rope_theta": SIZES.rope_theta,
    }  # fmt: skip
    vision = {
        "hidden_size": SIZES.vision_width, "intermediate_size": SIZES.vision_hidden, "patch_size": SIZES.vision_patch,
        "num_hidden_layers": SIZES.vision_depth + 1, "num_attention_heads": SIZES.vision_heads, "image_size": 112,
        "layer_norm_eps": SIZES.vision_epsilon, "hidden_act": SIZES.vision_act,
    }  # fmt: skip
    change(path / "llm_config.json", **text)
    change(path / "vit_config.json", **vision)
    weights = random_weights(BagelModel(SIZES), seed)
    own = {name: weights.pop(name) for name in list(weights) if name.startswith("vae.")}
    save_file(weights, path / "ema.safetensors")
    save_file({name.removeprefix("vae."): tensor for name, tensor in own.items()}, path / "ae.safetensors")
    return path


def mobileo_folder(recorded: Path, path: Path, seed: int = 5) -> tuple[Path, Path]:
    """The model's folder and SANA's configs: fewer layers mixed, four levels of autoencoder in place of six."""
    folder, sana = path / "checkpoint", path / "sana"
    shutil.copytree(recorded / "sana", sana, copy_function=shutil.copyfile)
    folder.mkdir()
    for file in (recorded / "checkpoint").iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copyfile(file, folder / file.name)
    text = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 14, "mm_vision_tower": "mobileclip_l_192", "vlm_num_layers": 2,
        "tie_word_embeddings": True,
    }  # fmt: skip
    transformer = {
        "attention_head_dim": 8, "num_attention_heads": 3, "cross_attention_dim": 24, "cross_attention_head_dim": 12,
        "num_cross_attention_heads": 2, "caption_channels": 40, "in_channels": 8, "out_channels": 8, "num_layers": 2,
        "sample_size": 6, "patch_size": 2, "interpolation_scale": 0.5,
    }  # fmt: skip
    vae = {"latent_channels": 8, "attention_head_dim": 8, "scaling_factor": 0.5}
    for way in ("encoder", "decoder"):
        vae[f"{way}_block_out_channels"] = [8, 8, 16, 16]
        vae[f"{way}_block_types"] = ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"]
        vae[f"{way}_layers_per_block"] = [1, 2, 1, 1]
        vae[f"{way}_qkv_multiscales"] = [[], [], [5], [5]]
    change(folder / "config.json", **text)
    change(sana / "transformer" / "config.json", **transformer)
    change(sana / "vae" / "config.json", **vae)
    model = mobileo.skeleton(found_at(folder, sana=sana))  # of the sizes that configs say; the others are ours
    whole = model.model
    sizes = FastViTSizes((2, 1, 1, 1, 2), (8, 8, 16, 32, 64), 2, 128, 24)
    whole.vision_tower.vision_tower.model = FastViT(sizes)
    whole.mm_projector[0] = nn.Linear(sizes.out_width, 48)
    whole.diffusion_connector.fusion = Connector(ConnectorSizes(2, 48, 20, 1, 6, 40))
    weights = random_weights(model, seed)
    del weights["lm_head.weight"]  # tied
    in_shards({name: tensor.half() for name, tensor in weights.items()}, folder, "model", 3)
    return folder, sana


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def in_shards(weights: dict[str, torch.Tensor], folder: Path, stem: str, count: int) -> dict[str, str]:
    """Tensor -> file; with an index where there are several."""
    names = sorted(weights)
    files = [f"{stem}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    files = files if count > 1 else [f"{stem}.safetensors"]
    listed = {name: files[place % count] for place, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name].contiguous() for name in names if listed[name] == file}, folder / file)
    if count > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return listed


def random_weights(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Norms and scales around one, products that keep a signal's size, all else around nothing."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point() or name.endswith("running_mean"):
            continue
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            found[name] = (1 + 0.2 * noise).abs()
        elif tensor.ndim >= 2 and "embed" not in name:
            found[name] = noise / max(tensor[0].numel(), 1) ** 0.5
        else:
            found[name] = 0.3 * noise
    found["model.diffusion_connector.fusion.temperature"] = torch.tensor(1.5)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            found[name] = torch.zeros(tensor.shape)
    return {name: tensor for name, tensor in found.items() if name in model.state_dict()}
