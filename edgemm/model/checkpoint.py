"""Checkpoints: a folder of safetensors, config.json and tokenizer.json, in the Hugging Face layout.

    config.json                what the model is (edgemm.model.config.ModelConfig)
    tokenizer.json             Hugging Face tokenizers format
    model.safetensors          projection behind the eye, conditioner, denoiser; the transformer too if it has no base
    transformer_adapter/       LoRA on the transformer, in PEFT's own layout; merged when loaded
    README.md                  the model card

A base (config.base) is loaded from its own package and never stored again; the frozen Lite0 eye likewise.
Whatever goes wrong while one is saved, the folder is the old one or the new one (bundle/writer.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from edgemm.bundle.adapter_config import FILES, AdapterConfig
from edgemm.bundle.files import is_disk_full, read_text, reading
from edgemm.bundle.writer import check_replaceable, whole_folder
from edgemm.errors import CheckpointError, InputError, ResourceError, UsageError
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.pretrained import load_transformer_weights, read_file, write_tokenizer
from edgemm.model.prompts import byte_tokenizer_json, with_queries
from edgemm.model.transformer import Layer
from edgemm.model.undrawn import Undrawn
from edgemm.model.unified import Unified
from edgemm.model.vision import DualEye, lite0_weights

__all__ = [
    "ADAPTER",
    "FORMAT_FILES",
    "build",
    "check_model_output",
    "holds_model",
    "load",
    "merge_adapter",
    "ran_out_of_disk",
    "read_adapter",
    "save",
    "stored_state",
    "weights_hash",
]

FORMAT_FILES = ("config.json", "tokenizer.json", "model.safetensors")
ADAPTER = "transformer_adapter"
ID_LAYERS = 2  # that begin by looking up a graph's ids: the second finds what the first has brought to other edges
QUERIES = "transformer.queries."  # learned, so stored, whatever the transformer's base


def build(config: ModelConfig | str, seed: int = 0, tokenizer_json: str = "") -> Unified:
    """A new model of a preset or config: base and eye loaded, everything else initialised from the seed.

    `tokenizer_json` replaces the bytes of a model without a base, which then has as many tokens. UsageError where it
    has a base, or says pictures in codes, whose ids stand behind those of the bytes.
    """
    config = PRESETS[config]() if isinstance(config, str) else config
    if tokenizer_json:
        config = _with_tokens_of(config, tokenizer_json)
    torch.manual_seed(seed)
    tokenizer = tokenizer_json or byte_tokenizer_json()
    if config.base:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            write_tokenizer(config.base, path)
            tokenizer = path.read_text(encoding="utf-8")
    if config.transformer.queries:
        tokenizer = with_queries(tokenizer, config.transformer.vocab_size, config.transformer.queries)
    model = Unified(config, tokenizer)
    if model.transformer.queries is not None:
        torch.nn.init.normal_(model.transformer.queries.weight, std=0.1)
    if not config.base:
        # The output head shares it: a spread of 1 is sure of everything at birth, one of 0.02 never can be.
        torch.nn.init.normal_(model.transformer.embed_tokens.weight, std=0.1)
    _load_bases(model)
    if config.objective == "flow":
        model.image_encoder.match_embeddings(model.transformer.embed_tokens.weight)
        for encoder in (model.graph_encoder, model.motion_encoder):
            if encoder is not None:
                encoder.match_embeddings(model.transformer.embed_tokens.weight)
        if model.graph_encoder is not None and not config.base:
            for layer in cast("list[Layer]", model.transformer.layers[:ID_LAYERS]):
                model.graph_encoder.attend_by_ids(layer.self_attn)
    return model.eval()


def _with_tokens_of(config: ModelConfig, tokenizer_json: str) -> ModelConfig:
    from tokenizers import Tokenizer

    if config.base or config.objective == "ar":
        why = f"has the tokens of its base {config.base}" if config.base else "says pictures in codes"
        raise UsageError(f"{config.name} {why}: it takes no other vocabulary")
    size = Tokenizer.from_str(tokenizer_json).get_vocab_size()
    return dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, vocab_size=size))


def _load_bases(model: Unified) -> None:
    config = model.config
    if config.base:
        try:
            weights = load_transformer_weights(config.base, config.transformer, model.tokenizer_json)
            weights = _kept(weights, config.base_layers)
            if model.transformer.queries is not None:  # are no base's
                weights["queries.weight"] = model.transformer.queries.weight.detach()
            model.transformer.load_state_dict(weights)
        except RuntimeError as error:  # names every tensor that is missing, unknown or of another shape
            raise CheckpointError(f"base {config.base}: {error}") from error
    if config.vision.sees:
        encoder = model.image_encoder.encoder
        (encoder.eye if isinstance(encoder, DualEye) else encoder).load_state_dict(lite0_weights())


def _kept(weights: dict[str, Tensor], layers: tuple[int, ...]) -> dict[str, Tensor]:
    """A base's weights without the layers that were pruned, the others renumbered in order."""
    if not layers:
        return weights
    number = {str(old): str(new) for new, old in enumerate(layers)}
    found = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        layer, _, rest = rest.partition(".")
        if part != "layers":
            found[name] = tensor
        elif layer in number:
            found[f"layers.{number[layer]}.{rest}"] = tensor
    return found


def stored_state(model: Unified) -> dict[str, Tensor]:
    """The tensors that belong in the checkpoint itself: all but a base transformer and a pretrained eye.

    While PEFT has its adapter in the transformer, that stays out too, and the weights go by their own names.
    """
    left_out = ("transformer.",) if model.config.base else ()
    if model.config.vision.sees:
        left_out += ("image_encoder.encoder.",)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if (not name.startswith(left_out) or name.startswith(QUERIES)) and ".lora_" not in name
    }


def load(path: str | os.PathLike[str], merge: bool = True) -> Unified:
    """The model of a checkpoint folder, float32, in eval mode, its adapter merged; or named in `adapter`, for training.

    Raises CheckpointError naming what is missing or does not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; a checkpoint is a folder with {', '.join(FORMAT_FILES)}")
    for name in FORMAT_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; a checkpoint holds {', '.join(FORMAT_FILES)}")
    config = ModelConfig.read(folder / "config.json")
    with reading(folder / "tokenizer.json", "", CheckpointError):
        tokenizer = read_text(folder / "tokenizer.json")
        try:
            with Undrawn():  # every weight is read below
                model = Unified(config, tokenizer)
        except InputError as error:
            raise CheckpointError(f"{folder / 'tokenizer.json'}: {error}") from error
    state = read_file(folder / "model.safetensors")
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
        if merge:
            merge_adapter(model, folder / ADAPTER)
        if config.base or not merge:  # else the merged weights are the checkpoint's own: saving stores them
            model.adapter = folder / ADAPTER
    return model.eval()


def merge_adapter(model: Unified, folder: Path) -> None:
    """Add a LoRA adapter's product to the base weights, in float32: W + scale * B A (arXiv:2106.09685)."""
    config, tensors = read_adapter(folder)
    weights = dict(model.transformer.named_parameters())
    for name, down in tensors.items():
        target = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if name.endswith(".lora_B.weight") and name.replace(".lora_B.", ".lora_A.") in tensors:
            continue
        up, weight = tensors.get(f"base_model.model.{target}.lora_B.weight"), weights.get(f"{target}.weight")
        if up is None or weight is None:
            raise CheckpointError(f"{folder}: {name} is no half of a LoRA pair on a layer of the transformer")
        if (up.shape[0], down.shape[1], up.shape[1]) != (*weight.shape, down.shape[0]):
            shapes = f"{tuple(up.shape)} x {tuple(down.shape)}"
            raise CheckpointError(f"{folder}: {target} is {shapes}, the transformer's weight is {tuple(weight.shape)}")
        scale = config.scale(target, down.shape[0])
        with torch.no_grad():
            weight += scale * (up.float() @ down.float())


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """PEFT's two files of a plain LoRA. Raises CheckpointError where it is anything else."""
    from safetensors.torch import load_file

    with reading(folder, f"an adapter is {' and '.join(FILES)}", CheckpointError):
        return AdapterConfig.read(folder), load_file(folder / FILES[1])


def holds_model(folder: Path) -> bool:
    """Whether it is a model's folder, ours or any other in the Hugging Face layout."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def check_model_output(output: Path, *sources: str | os.PathLike[str]) -> None:
    """What may be replaced by a checkpoint: InputError where `output` holds something and no model, or a source.

    Every verb that writes one asks before it works; `save` asks again.
    """
    check_replaceable(output, holds_model, "model", sources)


def save(
    model: Unified, path: str | os.PathLike[str], dtype: torch.dtype | None = None, adapter: Path | None = None
) -> None:
    """Write the checkpoint folder, floats as `dtype` if given. An adapter folder is copied in as transformer_adapter.

    The model's own transformer weights are stored only when it has no base. Raises ResourceError when the disk is full,
    InputError where something stands there that is no model.
    """
    from safetensors.torch import save_file

    destination = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in stored_state(model).items()}
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        with whole_folder(destination, check_model_output) as folder:
            (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n", encoding="utf-8")
            (folder / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            if adapter := adapter or model.adapter:
                _copy_adapter(adapter, folder / ADAPTER, dtype)
            if (destination / "README.md").is_file():
                shutil.copy2(destination / "README.md", folder / "README.md")
    except Exception as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        if ran_out_of_disk(error, destination.parent, size):
            free = shutil.disk_usage(destination.parent).free
            raise ResourceError(
                f"{destination}: disk full: needs {size} bytes, {free} are free; nothing was changed"
            ) from error
        raise


def ran_out_of_disk(error: Exception, folder: Path, size_bytes: int) -> bool:
    """Whether writing so many bytes failed for want of space; torch.save does not say so."""
    return is_disk_full(error) or (isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < size_bytes)


def _copy_adapter(source: Path, destination: Path, dtype: torch.dtype | None) -> None:
    """PEFT's two files, the numbers as `dtype` if given."""
    from safetensors.torch import load_file, save_file

    destination.mkdir()
    shutil.copyfile(source / FILES[0], destination / FILES[0])
    tensors = load_file(source / FILES[1])
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, destination / FILES[1], metadata={"format": "pt"})


def weights_hash(source: Path, with_spec: bool = False) -> str:
    """SHA-256 of a checkpoint folder's weights, its adapter's included, or of one file.

    A quantization spec in the folder counts only `with_spec`: what is made of weights is told by the weights, what
    a quantized model answers is not.
    """
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.safetensors")) if source.is_dir() else [source]:
        if path.name == "quant.safetensors" and not with_spec:
            continue
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
