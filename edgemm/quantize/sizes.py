"""What quantized weights take on disk, as CPUs' bundles have them (edgemm/export/lower_ort_cpu.py).

    codes        4 or 8 bits
    scales       of groups float16, of whole rows float32; of small floats as floats.py says
    zero-points  as many bits as a code, where numbers are not symmetric
    branches     float32
What stays in float is not counted.  Axes: n output channels, k input channels, g groups of a row.
"""

from __future__ import annotations

import math

from edgemm.quantize.spec import PLACES, Layer, Spec

__all__ = ["layer_bytes", "size_bytes"]


def layer_bytes(layer: Layer, n: int, k: int) -> int:
    """Of a weight (n, k)."""
    assert layer.bits is not None
    branch = 4 * layer.rank * (n + k)
    codes = n * math.ceil(k * layer.bits / 8)
    if layer.form == "fp8":
        return codes + 4 * n + branch
    if layer.form == "nvfp4":
        return codes + n * math.ceil(k / layer.group) + 4 + branch
    g = math.ceil(k / layer.group) if layer.group else 1
    zeros = 0 if layer.symmetric else n * math.ceil(g * layer.bits / 8)
    return codes + n * g * (2 if layer.group else 4) + zeros + branch


def size_bytes(spec: Spec) -> int:
    """Of all layers that a spec quantizes, and of what says which row of the embedding is which token's."""
    total = sum(array.nbytes for name, array in spec.tensors.items() if name.endswith(f".{PLACES}"))
    for name, layer in spec.document.layers.items():
        if layer.bits is not None:
            total += layer_bytes(layer, *spec.tensors[f"{name}.codes"].shape)
    return total
