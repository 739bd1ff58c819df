"""A checkpoint's transformer for transformers and bitsandbytes: a Llama folder whose linear layers are nf4 or int8.

    nf4     blocks of 64, their scales quantized too (arXiv:2305.14314), by bitsandbytes itself
    int8    one scale an output channel, LLM.int8's own form (arXiv:2208.07339)

It reads text.  What sees pictures and what draws has no place in such a folder and stays behind.  The other way round,
a folder that bitsandbytes packed is read as a base or exported like any other: model/pretrained.py.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.writer import whole_folder
from edgemm.errors import InputError, MissingError, UsageError
from edgemm.model.checkpoint import check_model_output
from edgemm.model.config import ModelConfig
from edgemm.model.prompts import stop_ids
from edgemm.model.unified import Unified
from edgemm.quantize.rounding import rtn

__all__ = ["write_bitsandbytes"]

REAL = torch.bfloat16  # of what stays in float, and of what is computed
CONFIGS: dict[str, dict[str, Any]] = {  # as transformers' BitsAndBytesConfig writes it
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}


def write_bitsandbytes(model: Unified, output: Path, kind: str, overwrite: bool = False) -> None:
    """The folder `output`, whole or not at all; `kind` is a row of CONFIGS."""
    from safetensors.torch import save_file

    if model.transformer.queries is not None:
        raise UsageError(f"{model.config.name}: its transformer has learned queries, which Llama has no place for")

    def may_replace(there: Path) -> None:
        if not overwrite:
            raise InputError(f"{there}: exists already; choose another name or ask to overwrite it (--overwrite)")
        check_model_output(there)

    with whole_folder(output, may_replace) as folder:
        tensors = _tensors(model, _nf4 if kind == "nf4" else _int8)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        for name, document in (
            ("config.json", _config(model, kind)),
            ("tokenizer_config.json", _tokenizer_config(model.config)),
        ):
            (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _tensors(model: Unified, pack: Callable[[str, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    linear = {name for name, part in model.transformer.named_modules() if isinstance(part, nn.Linear)}
    found: dict[str, Tensor] = {}
    for name, tensor in model.transformer.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in linear:
            found |= pack(f"model.{layer}", tensor.detach().float())
        else:
            found[f"model.{name}"] = tensor.detach().to(REAL).contiguous()
    return found


def _nf4(layer: str, weight: Tensor) -> dict[str, Tensor]:
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise MissingError("nf4 needs bitsandbytes: pip install 'edgemm[quantize]'") from error
    packed, state = quantize_4bit(weight.to(REAL), blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = state.as_dict(packed=True)
    return {f"{layer}.weight": packed, **{f"{layer}.weight.{name}": part for name, part in parts.items()}}


def _int8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    numbers = rtn(weight, 8, 0, symmetric=True)
    return {
        f"{layer}.weight": (numbers.codes.to(torch.int16) - 128).to(torch.int8),  # (n, k)
        f"{layer}.SCB": numbers.scales[:, 0] * 127,
        f"{layer}.weight_format": torch.tensor(0, dtype=torch.uint8),  # rows lie one after the other
    }


def _config(model: Unified, kind: str) -> dict[str, Any]:
    told = model.config.transformer
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": told.vocab_size,
        "hidden_size": told.width,
        "intermediate_size": told.ffn_width,
        "num_hidden_layers": told.depth,
        "num_attention_heads": told.heads,
        "num_key_value_heads": told.kv_heads,
        "head_dim": told.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": told.max_context,
        "rms_norm_eps": told.norm_eps,
        "rope_theta": told.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": told.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": stop_ids(model.config, model.tokenizer),
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "bitsandbytes", **CONFIGS[kind]},
    }


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    chat = config.chat
    turns = {"system": (chat.system_open, chat.system_close), "user": (chat.user_open, chat.user_close)}
    turns["assistant"] = (chat.assistant_open, chat.assistant_close)
    cases = "".join(
        f"{{% {'if' if role == 'system' else 'elif'} message['role'] == '{role}' %}}"
        f"{{{{ {json.dumps(opening)} + message['content'] + {json.dumps(closing)} }}}}"
        for role, (opening, closing) in turns.items()
    )
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": config.stop_tokens[0],
        "chat_template": f"{{% for message in messages %}}{cases}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {json.dumps(chat.assistant_open)} }}}}{{% endif %}}",
    }
