"""A JanusFlow folder of other sizes than the recorded one: grouped queries, biases everywhere, another grid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from edgemm.families import janusflow
from edgemm.families.autoencoder_kl import WEIGHTS, autoencoder_skeleton
from tests.families.golden import GOLDEN, found_at
from tests.families.tiny.published import in_shards

__all__ = ["folder", "other_autoencoder"]

BY = 0.3  # spread of weights: other prompts and pictures are to give other answers


def folder(path: Path, seed: int = 5) -> tuple[Path, Path]:
    """The model's folder and the autoencoder's."""
    source = GOLDEN / "janusflow" / "checkpoint"
    path.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copyfile(file, path / file.name)
    config = json.loads((path / "config.json").read_text())
    config["language_config"] |= {
        "hidden_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 14, "rms_norm_eps": 1e-4,
        "attention_bias": True, "tie_word_embeddings": True,
    }  # fmt: skip
    config["vision_und_enc_config"]["params"] |= {"image_size": 48, "patch_size": 8, "layers": 1, "heads": 4}
    for part, layers in (("enc", 1), ("dec", 3)):
        more = {"block_out_channels": [20], "hidden_size": 48, "layers_in_middle": layers, "use_bias": True}
        config[f"vision_gen_{part}_config"]["params"] |= more
    config["vision_gen_dec_config"]["params"]["in_channels"] = 20
    (path / "config.json").write_text(json.dumps(config))
    _change(path / "preprocessor_config.json", image_size=48)
    _change(path / "processor_config.json", num_image_tokens=36)
    torch.manual_seed(seed)
    weights = {name: tensor.half() for name, tensor in _weights(janusflow.skeleton(found_at(path))).items()}
    in_shards(weights, path, "model", 3)
    return path, other_autoencoder(path.with_name("vae"))


def other_autoencoder(path: Path, **changes: object) -> Path:
    """Three levels in place of four, wider, with a shift and without the last attention."""
    path.mkdir(parents=True)
    config = json.loads((GOLDEN / "janusflow" / "vae" / "config.json").read_text())
    config |= {"block_out_channels": [8, 12, 20], "layers_per_block": 2, "shift_factor": 0.2}
    config |= {
        f"{way}_block_types": [f"{way.title()}{'En' if way == 'down' else 'De'}coderBlock2D"] * 3
        for way in ("down", "up")
    }
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(_weights(autoencoder_skeleton(path)), path / WEIGHTS)
    return path


def _change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Norms around one, all else around nothing."""
    found = {}
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape) * BY
        found[name] = 1 + noise if "norm" in name and name.endswith("weight") and tensor.ndim == 1 else noise
    return found
