"""From a caller's words to what each layer shall be: bits, groups, inputs, and what stays finer and why.

TEXT words are about the transformer, DRAW words about conditioner and denoiser.  What the numbers are is not decided
here.  The eye and the image decoder stay in float: they run once a picture and are small.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from torch import nn

from edgemm.errors import UsageError
from edgemm.model.unified import Unified
from edgemm.quantize.quantized_linear import quantizable
from edgemm.quantize.spec import HEAD, Layer

__all__ = ["DRAW", "TEXT", "layers_of"]

BLOCK = 32  # channels a scale covers, as CPU kernels like it
PORTABLE_BLOCK = 64  # as NVIDIA's builders take it

TEXT = {
    "fp16": Layer(None),
    "int8": Layer(8, BLOCK, symmetric=False, activations="block"),
    "w8a8": Layer(8, 0, activations="tensor"),
    "int4": Layer(4, BLOCK, symmetric=False, activations="block"),
}
DRAW = {
    "fp16": Layer(None),
    "int8": Layer(8, 0, activations="tensor"),
    "w4a8": Layer(4, BLOCK, symmetric=False, activations="block"),
}
PORTABLE = {  # forms that every target takes: no zero-points, ranges known beforehand
    "int8": Layer(8, 0),
    "w8a8": Layer(8, 0, activations="static"),
    "int4": Layer(4, PORTABLE_BLOCK),
}
PORTABLE_DRAW = {"int8": Layer(8, 0, activations="static")}


def layers_of(model: Unified, text: str, draw: str, portable: bool = False) -> dict[str, Layer]:
    """Layer name -> what it shall be, methods still unnamed; layers that stay in float say why."""
    asked = (
        _read(text, "text", TEXT, PORTABLE if portable else {}),
        _read(draw, "draw", DRAW, PORTABLE_DRAW if portable else {}),
    )
    return dict(_decide(model, *asked, portable))


def _read(word: str, side: str, table: dict[str, Layer], portable: dict[str, Layer]) -> Layer:
    if word not in table:
        raise UsageError(f"--{side} {word!r} is none of: {', '.join(table)}")
    return portable.get(word, table[word])


def _decide(model: Unified, text: Layer, draw: Layer, portable: bool) -> Iterator[tuple[str, Layer]]:
    drawing_depth = max(model.config.denoiser.prefix_layers) + 1
    for name, part in quantizable(model).items():
        component = name.partition(".")[0]
        if component == "transformer" and text.bits is not None:
            if name == HEAD and portable:
                yield name, Layer(None, reason="looked up and multiplied with: it stays in the target's own float")
            else:
                yield name, _text_layer(name, part, text, drawing_depth)
        elif component in ("conditioner", "denoiser") and draw.bits is not None:
            yield name, _draw_layer(name, draw)


def _text_layer(name: str, part: nn.Module, asked: Layer, drawing_depth: int) -> Layer:
    if name == HEAD:
        width = part.weight.shape[1]  # type: ignore[union-attr]
        if width % BLOCK:
            return Layer(None, reason=f"its width {width} is no multiple of {BLOCK}")
        return Layer(8, BLOCK, activations="block", reason="the embedding is the head: a coarse one costs twice")
    drawn = re.search(r"layers\.(\d+)\.(?:self_attn\.[kv]_proj|mlp\.down_proj)$", name)
    if asked.bits == 4 and drawn and int(drawn[1]) < drawing_depth:
        group = 0 if asked.symmetric else asked.group
        return Layer(8, group, asked.symmetric, asked.activations, reason="its keys and values are read at every step")
    if asked.activations in ("tensor", "static") and name.endswith(".down_proj"):
        safe = Layer(8, BLOCK, activations="block") if asked.activations == "tensor" else Layer(8)
        return dataclasses.replace(safe, reason="a few tokens' inputs are thousands of times the others'")
    return asked


def _draw_layer(name: str, asked: Layer) -> Layer:
    if name in ("denoiser.embed", "denoiser.head"):
        return Layer(None, reason="next to the picture's own numbers")
    if asked.bits == 4 and not re.search(r"\.blocks\.\d+\.(qkv|o|up|down)_proj$", name):
        return Layer(8, asked.group, asked.symmetric, asked.activations, reason="small, and it steers every block")
    return asked
