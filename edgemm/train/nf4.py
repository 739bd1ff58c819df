"""A transformer's linear layers in bitsandbytes' nf4 while an adapter is trained (QLoRA, arXiv:2305.14314).

On processors with AVX512-BF16 a `Linear4bit` repacks its weights at the first forward without gradients, and what is
dequantized after that is garbage, with no message.  Layers made here never repack.  An adapter is never merged into
nf4, which would round it away: `to_dense` gives plain layers back first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.errors import MissingError

__all__ = ["dense_weight", "to_dense", "to_nf4"]


def to_nf4(module: nn.Module) -> None:
    """Replace every linear layer below `module`, in place; what lies outside linear layers keeps its precision."""
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError as error:
        raise MissingError("qlora needs bitsandbytes: pip install 'edgemm[quantize]'") from error
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                small: Any = Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None, quant_type="nf4"
                )
                small.load_state_dict(child.state_dict())
                small.support_avx512bf16_for_cpu = False  # never repack; see above
                setattr(parent, name, small.to(child.weight.device).requires_grad_(False))
    module.is_loaded_in_4bit = True  # type: ignore[assignment]  # how PEFT knows


def dense_weight(layer: Any) -> Tensor:
    """The numbers (out, in) that a Linear4bit computes with, float32."""
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError("this Linear4bit was repacked by a forward; its numbers cannot be had back exactly")
    return dequantize_4bit(layer.weight.data, state).float()


def to_dense(module: nn.Module) -> None:
    """Replace every nf4 layer by a plain one of the same, rounded numbers."""
    from bitsandbytes.nn.modules import Linear4bit

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear4bit):
                plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                with torch.no_grad():
                    plain.weight.copy_(dense_weight(child))
                    if child.bias is not None:
                        plain.bias.copy_(child.bias)
                setattr(parent, name, plain.requires_grad_(False))
    module.is_loaded_in_4bit = False  # type: ignore[assignment]
