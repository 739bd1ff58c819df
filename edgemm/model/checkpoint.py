"""Checkpoints: a folder of safetensors, config.json and tokenizer.json, in the Hugging Face layout.

    config.json                what the model is (edgemm.config.ModelConfig)
    tokenizer.json             Hugging Face tokenizers format
    model.safetensors          image encoder's projection, conditioner, denoiser; the transformer too when it has no base
    transformer_adapter/       LoRA on the base transformer, in PEFT's own layout; merged when loaded
    README.md                  the model card

A base (config.base) is loaded from its own package and never stored again; the frozen Lite0 eye likewise.
Saving writes beside the destination and renames, so a killed process leaves the old folder or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from edgemm.config import PRESETS, ModelConfig
from edgemm.errors import CheckpointError, ResourceError
from edgemm.model.lite0 import lite0_weights
from edgemm.model.pretrained import load_transformer_weights, write_tokenizer
from edgemm.model.prompts import byte_tokenizer_json
from edgemm.model.unified import Unified

__all__ = ["FORMAT_FILES", "build", "load", "save", "stored_state"]

FORMAT_FILES = ("config.json", "tokenizer.json", "model.safetensors")
ADAPTER = "transformer_adapter"


def build(config: ModelConfig | str, seed: int = 0) -> Unified:
    """A new model of a preset or config: base and eye loaded, everything else initialised from the seed."""
    config = PRESETS[config]() if isinstance(config, str) else config
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer_json()
    if config.base:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            write_tokenizer(config.base, path)
            tokenizer = path.read_text(encoding="utf-8")
    model = Unified(config, tokenizer)
    _load_bases(model)
    model.image_encoder.match_embeddings(model.transformer.embed_tokens.weight)
    return model.eval()


def _load_bases(model: Unified) -> None:
    config = model.config
    if config.base:
        model.transformer.load_state_dict(load_transformer_weights(config.base, config.transformer))
    if config.vision.encoder == "lite0":
        model.image_encoder.encoder.load_state_dict(lite0_weights())


def stored_state(model: Unified) -> dict[str, Tensor]:
    """The tensors that belong in the checkpoint itself: all but a base transformer and a pretrained eye."""
    left_out = ("transformer.",) if model.config.base else ()
    if model.config.vision.encoder == "lite0":
        left_out += ("image_encoder.encoder.",)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left_out)}


def load(path: str | os.PathLike[str]) -> Unified:
    """The model of a checkpoint folder, float32, in eval mode, its adapter merged.

    Raises CheckpointError naming what is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; a checkpoint is a folder with {', '.join(FORMAT_FILES)}")
    for name in FORMAT_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; a checkpoint holds {', '.join(FORMAT_FILES)}")
    config = ModelConfig.read(folder / "config.json")
    model = Unified(config, (folder / "tokenizer.json").read_text(encoding="utf-8"))
    try:
        state = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'}: {error}") from error
    expected = stored_state(model)
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{folder / 'model.safetensors'}: tensor {name} is missing")
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{folder / 'model.safetensors'}: {name} is {found}, config.json says {wanted}")
    if extra := sorted(set(state) - set(expected)):
        raise CheckpointError(f"{folder / 'model.safetensors'}: unknown tensor {extra[0]}")
    _load_bases(model)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    if (folder / ADAPTER).is_dir():
        _merge_adapter(model, folder / ADAPTER)
        model.adapter = folder / ADAPTER
    return model.eval()


def _merge_adapter(model: Unified, folder: Path) -> None:
    """Add a LoRA adapter's product to the base weights, in float32: W + scale * B A (arXiv:2106.09685)."""
    from safetensors.torch import load_file

    document = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = document["r"], document["lora_alpha"]
    scale = alpha / rank**0.5 if document.get("use_rslora") else alpha / rank
    tensors = load_file(folder / "adapter_model.safetensors")
    weights = dict(model.transformer.named_parameters())
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        target = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = tensors[f"base_model.model.{target}.lora_B.weight"]
        if f"{target}.weight" not in weights:
            raise CheckpointError(f"{folder}: adapter for {target}, which the transformer does not have")
        with torch.no_grad():
            weights[f"{target}.weight"] += scale * (up.float() @ down.float())


def save(model: Unified, path: str | os.PathLike[str], dtype: torch.dtype | None = None, adapter: Path | None = None) -> None:
    """Write the checkpoint folder, floats as `dtype` if given. An adapter folder is copied in as transformer_adapter.

    The model's own transformer weights are stored only when it has no base. Raises ResourceError when the disk is full.
    """
    from safetensors.torch import save_file

    destination = Path(path)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    state = stored_state(model)
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        temporary.mkdir(parents=True)
        (temporary / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n", encoding="utf-8")
        (temporary / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        if adapter := adapter or model.adapter:
            shutil.copytree(adapter, temporary / ADAPTER)
        if (destination / "README.md").is_file():
            shutil.copy2(destination / "README.md", temporary / "README.md")
        if destination.exists():
            aside = temporary.with_suffix(".old")
            destination.rename(aside)
            temporary.rename(destination)
            shutil.rmtree(aside)
        else:
            temporary.rename(destination)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        free = shutil.disk_usage(destination.parent).free
        raise ResourceError(f"{destination}: disk full: needs {size} bytes, {free} are free; nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


