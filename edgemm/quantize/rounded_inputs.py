"""What a target does to the inputs of a quantized product, in float: to numbers of 8 bits and back.

`rounded` is one pure function a kind of spec.ACTIVATIONS.  Axes: ... any, k input channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgemm.quantize.floats import E4M3_LARGEST, as_e4m3, in_blocks, whole_of

__all__ = ["BLOCK", "rounded"]

BLOCK = 32  # where the weight has none of its own


def rounded(x: Tensor, kind: str, largest: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """x (..., k) as the product sees it; `largest` is the range of static, fp8 and nvfp4 inputs, `block` the channels
    that share a scale of the weight's."""
    if kind == "float":
        return x
    if kind == "static":
        assert largest is not None
        return _symmetric(x, largest)
    if kind == "fp8":
        assert largest is not None
        scale = (largest / E4M3_LARGEST).clamp(min=1e-12)
        return as_e4m3(x / scale).to(x.dtype) * scale
    if kind == "nvfp4":
        assert largest is not None
        return in_blocks(x.flatten(0, -2), whole_of(largest)).dequantized().view_as(x)
    if kind == "token":
        return _symmetric(x, x.abs().amax(-1, keepdim=True))
    if kind == "block":
        k = x.shape[-1]
        blocks = pad(x, (0, -k % block)).unflatten(-1, (-1, block))
        return _symmetric(blocks, blocks.abs().amax(-1, keepdim=True)).flatten(-2)[..., :k]
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)  # as ONNX's DynamicQuantizeLinear
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).sub(zero).mul(scale)


def _symmetric(x: Tensor, largest: Tensor) -> Tensor:
    scale = (largest / 127).clamp(min=1e-12)
    return torch.round(x / scale).clamp(-127, 127) * scale
