"""What smoothing did to the inputs and outputs of linear layers, so that adapters made for the checkpoint still fit.

    (x / s) ((s A) B) = x A B        the reader of a smoothed activation
    (x A) (B / s) = (x A B) / s      a linear layer that makes one

The runtime scales an adapter's factors when it loads them, so a step costs nothing more.  The sites are those of
quantize/smoothing.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from safetensors.numpy import save
from torch import nn

from edgemm.quantize.smoothing import sites
from edgemm.quantize.spec import Spec

__all__ = ["adapter_scales"]


def adapter_scales(model: nn.Module, specs: Iterable[Spec]) -> bytes | None:
    """`COMPONENT.MODULE.in` and `.out`, as a safetensors file: what inputs and outputs were divided by; None if none
    was.  A layer may be at several sites, and a site in several specs that share what is folded."""
    known = sites(model)
    folded = {
        name: spec.tensors[f"{name}.smooth"] for spec in specs for name in spec.document.smoothed
    }  # site -> factors
    scales: dict[str, np.ndarray] = {}
    for name, factors in folded.items():
        site = known[name]
        for layer in site.readers:
            scales[f"{layer}.in"] = factors.astype(np.float32)
        if isinstance(model.get_submodule(site.maker), nn.Linear) and site.rows is None:
            scales[f"{site.maker}.out"] = factors.astype(np.float32)
    return save(scales) if scales else None
