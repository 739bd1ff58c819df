"""A module whose random numbers are not drawn: for whoever replaces all of them, and has drawn them in vain.

What is not random in it (zeros, ones, tables of angles) is as ever, and torch's generator stands where it stood.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Undrawn"]

RANDOM = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.orthogonal_,
    nn.init.uniform_,
}


class Undrawn(TorchFunctionMode):
    """`with Undrawn(): model = Model()` leaves as it finds it the memory that modules fill with random numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)
