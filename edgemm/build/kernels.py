"""Which GPUs multiply which numbers: a graph held against a compute capability, before minutes of building.

NVIDIA's builder may take small floats for a GPU that has no kernels for them, and widen them; we refuse.  From NVIDIA's
documentation of quantized types: FP8 from SM 8.9 on (Ada), FP4 from SM 10.0 on (Blackwell, and Thor).
"""

from __future__ import annotations

from collections.abc import Iterable

from edgemm.runtimes.onnx_outline import Outline

__all__ = ["LEAST_SM", "missing_kernels", "missing_precision"]

LEAST_SM = {"float4e2m1": (10, 0), "float8e4m3fn": (8, 9)}  # type of a tensor -> compute capability
HOLDS = {"nvfp4": "float4e2m1", "nvfp4-weights": "float4e2m1", "fp8": "float8e4m3fn"}  # precision -> such a tensor


def missing_precision(precisions: Iterable[str], compute_capability: str) -> str | None:
    """The same of a manifest's words, where no graph is read."""
    found = tuple(map(int, compute_capability.split(".")))
    for precision in sorted(set(precisions) & HOLDS.keys()):
        least = LEAST_SM[HOLDS[precision]]
        if found < least:
            from_sm = f"{least[0]}.{least[1]}"
            return f"it is in {precision}, which GPUs multiply from SM {from_sm} on; this one has {compute_capability}"
    return None


def missing_kernels(outline: Outline, compute_capability: str) -> str | None:
    """The first weight that such a GPU does not multiply, in words; the coarsest numbers are looked for first."""
    major, minor = map(int, compute_capability.split("."))
    for kind, least in LEAST_SM.items():
        names = [name for name in outline.weights if outline.types[name] == kind]
        if names and (major, minor) < least:
            name = min(names, key=lambda name: (not name.endswith(".codes"), name))  # a weight rather than a zero-point
            return f"{name!r} is {kind}, which GPUs multiply from SM {least[0]}.{least[1]} on"
    return None
