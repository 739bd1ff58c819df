"""Weights that bitsandbytes packed, as transformers saves them: read back as the float numbers that they stand for.

    X.weight           nf4 or fp4: two codes a byte, the first in the high half; with, all below X.weight:
      .absmax            the largest number of each block, float32, or a code of its own where it is nested
      .quant_map         what each of 16 codes means, times that
      .nested_absmax, .nested_quant_map   of nested blocks
      .quant_state.bitsandbytes__nf4      JSON as bytes: shape, block sizes, offset, type of nested scales
    X.weight, X.SCB    int8: codes (n, k), and the largest number of each row (n): w = code * SCB / 127

Files are read, never layers: on CPUs with AVX512-BF16 a layer repacks itself at its first forward, and says nothing.
Saved after that, its codes are the same but its scales went through bfloat16: nested ones are then rounded anew, to
others than before; plain ones lie there transposed, (k / block, n), which bitsandbytes itself reads as garbage.
bitsandbytes itself is not needed.  Papers: arXiv:2305.14314 (nf4), arXiv:2208.07339 (int8).
Axes: n output channels, k input channels, g blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemm.errors import CheckpointError

__all__ = ["is_packed", "unpacked"]

REALS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE = ".quant_state.bitsandbytes__"


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that bitsandbytes packed the weights beside it."""
    told = config.get("quantization_config")
    return isinstance(told, Mapping) and told.get("quant_method") == "bitsandbytes"


def unpacked(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """All tensors of a folder, those that were packed as float32; what is not packed stays as it is."""
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

    try:
        told = json.loads(bytes(tensors[state].tolist()))
        shape, block = tuple(told["shape"]), int(told["blocksize"])
        nested = (int(told["nested_blocksize"]), float(told["nested_offset"])) if "nested_offset" in told else None
        real = REALS[told.get("nested_dtype", "float32")]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: {state} cannot be read: {error!r}") from error
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
