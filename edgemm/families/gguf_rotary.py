"""How a GGUF file scales its rotary embedding, of which the library reads the base alone.

    rope_freqs.weight (d/2)     what each frequency is divided by: Llama 3.1 and what came after it
    ARCH.rope.scaling.type      none, linear or yarn, beside .factor and .original_context_length; without a type a
                                factor is linear, as it is for llama.cpp (there once called ARCH.rope.scale_linear)
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  Axes: d head width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError
from edgemm.model.gguf_reader import gguf_reader

__all__ = ["frequency_factors", "scale_rotary", "scaling_in"]

FACTORS = "rope_freqs.weight"


def scale_rotary(model: Any, path: Path) -> None:
    """Scales the frequencies of a text model of the library's as its file says; CheckpointError for a way that is not
    known."""
    import gguf

    with reading(path, "its rotary embedding cannot be read", CheckpointError):
        reader = gguf_reader(gguf)(str(path))
        scaling, factors = scaling_in(reader.fields, path), frequency_factors(reader)
    text = model.model
    if scaling:
        model.config.rope_parameters = {**model.config.rope_parameters, **scaling}
        text.rotary_emb = type(text.rotary_emb)(model.config)
    if factors is None:
        return
    if scaling.get("rope_type") == "yarn":
        raise CheckpointError(f"{path}: scales its rotary embedding twice, by {FACTORS} and by yarn")
    for inverse in (text.rotary_emb.inv_freq, text.rotary_emb.original_inv_freq):
        if factors.shape != inverse.shape:
            raise CheckpointError(f"{path}: {FACTORS} has {tuple(factors.shape)} numbers, expected {len(inverse)}")
        inverse.div_(factors)


def scaling_in(fields: Any, path: Path) -> dict[str, Any]:
    """The library's rope_parameters of a file's `fields`, {} where nothing is scaled."""
    arch = fields["general.architecture"].contents()

    def said(*names: str) -> Any:
        return next((fields[key].contents() for name in names if (key := f"{arch}.rope.{name}") in fields), None)

    factor = said("scaling.factor", "scale_linear") or 1.0
    kind = said("scaling.type") or "linear"
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind == "linear":
        return {"rope_type": kind, "factor": float(factor)}
    if kind != "yarn":
        raise CheckpointError(f"{path}: rotary embedding is scaled by {kind!r}, expected none, linear or yarn")
    if (context := said("scaling.original_context_length")) is None:
        raise CheckpointError(f"{path}: rotary embedding is scaled by yarn, without original_context_length")
    if (said("scaling.attn_factor") or 1.0) != 1:
        raise CheckpointError(f"{path}: rope.scaling.attn_factor is {said('scaling.attn_factor')}, expected 1 or none")
    return {"rope_type": kind, "factor": float(factor), "original_max_position_embeddings": int(context)}


def frequency_factors(reader: Any) -> torch.Tensor | None:
    """Of rope_freqs.weight, float32 (d/2); None where there is none, or all are 1."""
    import gguf

    found = next((tensor for tensor in reader.tensors if tensor.name == FACTORS), None)
    if found is None:
        return None
    factors = torch.from_numpy(np.array(gguf.dequantize(found.data, found.tensor_type), dtype=np.float32))
    return None if bool((factors == 1).all()) else factors
