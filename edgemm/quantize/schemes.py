"""The words of `edgemm quantize --text` and `--draw`: what most layers of a side become, and how they are rounded.

Which layers stay finer, and why, is in layers.py; which words a target's `--precision` stands for, in
export/schemes.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.quantize.number_formats import BLOCK as FLOAT_BLOCK
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.spec import Layer

__all__ = ["BLOCK", "DRAW", "TEXT", "SideScheme", "methods_of", "scheme_of"]

BLOCK = 32  # channels a scale covers, as CPU kernels like it
PORTABLE_BLOCK = 64  # as NVIDIA's builders take it


@dataclass(frozen=True)
class SideScheme:
    """Weights and input activations of most layers of a side."""

    layer: Layer
    portable: Layer | None = None  # the form that every target takes: no zero-points, ranges known beforehand
    method: str = ""  # what brings it within the project's bars (benchmarks/quantization.py); "" needs no data

    def form(self, portable: bool) -> Layer:
        return self.portable or self.layer if portable else self.layer


FLOAT = SideScheme(Layer(None))
FP8 = SideScheme(Layer(8, form="fp8", activations="fp8"))
INT4 = Layer(4, BLOCK, symmetric=False, activations="block")

TEXT = {
    "fp16": FLOAT,
    "int8": SideScheme(Layer(8, BLOCK, activations="block"), Layer(8, 0), "smoothquant"),
    "w8a8": SideScheme(Layer(8, 0, activations="token"), Layer(8, 0, activations="static"), "smoothquant"),
    "int4": SideScheme(INT4, Layer(4, PORTABLE_BLOCK), "awq+gptq"),
    "fp8": FP8,
    "nvfp4": SideScheme(Layer(4, FLOAT_BLOCK, form="nvfp4", activations="nvfp4")),
    "nvfp4-weights": SideScheme(Layer(4, FLOAT_BLOCK, form="nvfp4")),
}
DRAW = {
    "fp16": FLOAT,
    "int8": SideScheme(Layer(8, 0, activations="tensor"), Layer(8, 0, activations="static"), "smoothquant"),
    "w4a8": SideScheme(INT4, method="smoothquant+svd"),
    "fp8": FP8,
}
SIDES = {"text": TEXT, "draw": DRAW}


def scheme_of(side: str, word: str) -> SideScheme:
    """`side` is "text" or "draw"."""
    if word not in SIDES[side]:
        raise UsageError(f"--{side} {word!r} is none of: {', '.join(SIDES[side])}")
    return SIDES[side][word]


def methods_of(options: QuantizeOptions) -> dict[str, str]:
    """Side -> the method that was asked for, or what suits its word."""
    words = {"text": options.text, "draw": options.draw}
    return {side: scheme_of(side, word).method for side, word in words.items()} | options.methods
