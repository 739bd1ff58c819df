"""From a caller's words to what each layer shall be: bits, groups, inputs, and what stays finer and why.

Words for text are about the transformer and the image encoder, those for drawing about conditioner and denoiser; what
they mean for most layers is TEXT and DRAW, how they are rounded `methods_of`; which words a target's `--precision`
stands for is in export/schemes.py.  What the numbers are is not decided here, and nothing here knows more of a
model than names and shapes of its weights, so that it serves every family.  The image decoder of edgemm's own models
stays in float; of others every product with a weight is rounded, but where codes are chosen.
Axes: n output channels, k input channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from edgemm.errors import UsageError
from edgemm.model.unified import Unified
from edgemm.quantize.number_formats import BLOCK as FLOAT_BLOCK
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import weights_of
from edgemm.quantize.spec import HEAD, REST, Layer

__all__ = [
    "BLOCK",
    "DRAW",
    "IN_BLOCKS",
    "OUTLIERS",
    "SideScheme",
    "TEXT",
    "TOWERS",
    "choose_layers",
    "layers_of",
    "methods_of",
    "scheme_of",
    "side_of",
]

BLOCK = 32  # channels a scale covers, as CPU kernels like it
PORTABLE_BLOCK = 64  # as NVIDIA's builders take it


@dataclass(frozen=True)
class SideScheme:
    """Weights and input activations of most layers of a side."""

    layer: Layer
    portable: Layer | None = None  # the form that every target takes: no zero-points, ranges known beforehand
    method: str = ""  # what brings it within the project's bars (benchmarks/quantization.py); "" needs no data
    feeding: Layer | None = None  # form of what feeds the keys and values that drawing reads; None: blocks of 8 bits

    def form(self, portable: bool) -> Layer:
        return self.portable or self.layer if portable else self.layer


FLOAT = SideScheme(Layer(None))
FP8 = SideScheme(Layer(8, form="fp8", activations="fp8"))
INT4 = Layer(4, BLOCK, symmetric=False, activations="block")
W8A8 = Layer(8, 0, activations="token")

TEXT = {
    "fp16": FLOAT,
    "int8": SideScheme(Layer(8, BLOCK, activations="block"), Layer(8, 0), "smoothquant"),
    "w8a8": SideScheme(W8A8, Layer(8, 0, activations="static"), "smoothquant"),
    "int8-web": SideScheme(Layer(8)),  # for wasm: nothing in blocks
    "int4": SideScheme(INT4, Layer(4, PORTABLE_BLOCK), "awq+gptq"),
    "int4-w8a8": SideScheme(INT4, Layer(4, PORTABLE_BLOCK), "smoothquant", feeding=W8A8),
    "fp8": FP8,
    "nvfp4": SideScheme(Layer(4, FLOAT_BLOCK, form="nvfp4", activations="nvfp4")),
    "nvfp4-weights": SideScheme(Layer(4, FLOAT_BLOCK, form="nvfp4")),
}
DRAW = {
    "fp16": FLOAT,
    "int8": SideScheme(Layer(8, 0, activations="tensor"), Layer(8, 0, activations="static"), "smoothquant"),
    "w4a8": SideScheme(INT4, Layer(4, PORTABLE_BLOCK), "smoothquant+svd"),
    "fp8": FP8,
}
IN_BLOCKS = {"int4-w8a8": "int4"}  # what a word means where drawing reads nothing, or nothing is smoothed
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


WIDE = 64  # the same of an embedding in 8 bits
FREQUENT = {4: 16_384, 8: 24_576}  # tokens that keep 8 bits, as calibration.py orders them, by the bits asked for
HEAVY = 1 / 3  # of the transformer's numbers: where the embedding has more, bytes matter even when 8 bits are asked for
WIDE_BLOCKS = (128, 64)  # of 8 bits, where 4 are asked for: as good, and faster than blocks of 32
TENDER = re.compile(r"layers\.\d+\.(?:self_attn\.[qkv]_proj|mlp\.down_proj)$")  # as k-quant mixes of llama.cpp have it
READ = re.compile(r"layers\.(\d+)\.self_attn\.")  # queries beside keys and values, for the three are one product
CACHED = re.compile(r"layers\.(\d+)\.self_attn\.[qkv]_proj$")  # of the last layer that is read, nothing else is
OUTLIERS = "a few tokens' inputs are thousands of times the others'"
LAST_DIGIT = "it would pass the last digit of its inputs on"
READ_AT_EVERY_STEP = "its keys and values are read at every step"
READING = ("transformer", "text_head", "image_head")  # the heads of transformers that have several
TOWERS = ("image_encoder", "latent_encoder", "image_embedder", "image_decoder", "vq_decoder")  # of others' models
IMAGE_ENCODER = (  # of image encoders: layers, the fewest numbers, what they become
    (r"words\.proj", 0, replace(INT4, reason="only the likeliest words matter")),
    (r"(up|down)_proj", 0, replace(INT4, reason="it bears 4 bits")),
)
IMAGE_ENCODER_TIGHT = (  # the same where bytes matter more than 30 ms a load: engines unpack them before any product
    (r"words\.letters", 0, Layer(8, BLOCK, reason="as fine as the embedding that they are copied from")),
    (
        r"encoder\.(eye\.)?(blocks\.\d+\.(expand|project)|head)",
        100_000,
        Layer(8, BLOCK, reason="the last ones bear it"),
    ),
)


def side_of(name: str) -> str:
    """Whose methods and calibration data a layer's numbers come from: text, draw, or "" for what sees pictures."""
    component = name.partition(".")[0]
    return "text" if component in READING else "draw" if component in ("conditioner", "denoiser") else ""


def layers_of(model: Unified, text: str, draw: str, portable: bool = False) -> dict[str, Layer]:
    """Layer name -> what it shall be, methods still unnamed; layers that stay in float say why."""
    shapes = {name: (len(weight), weight.shape[1]) for name, weight in weights_of(model).items()}
    return choose_layers(shapes, text, draw, max(model.config.denoiser.prefix_layers, default=-1) + 1, portable)


def choose_layers(
    shapes: Mapping[str, tuple[int, int]],
    text: str,
    draw: str,
    drawing_depth: int = 0,
    portable: bool = False,
    towers: bool = False,
) -> dict[str, Layer]:
    """The same for weights (n, k) by name.  Drawing reads keys and values of layers below `drawing_depth`: where 4 bits
    are asked for, what feeds them keeps 8, in the lower half of the model at most (docs/quantize.md).  `towers`: what
    sees and paints pictures is rounded whole, to 8 bits."""
    schemes = scheme_of("text", text), scheme_of("draw", draw)
    portable = portable or any(scheme.layer.form != "int" for scheme in schemes)  # who takes those takes nothing else
    text_form, draw_form = (scheme.form(portable) for scheme in schemes)
    if text == "int8-web":
        chosen = dict(_decide_for_web(shapes, text_form, draw_form))
    else:
        feeding = None if portable else schemes[0].feeding
        chosen = dict(_decide(shapes, text_form, draw_form, drawing_depth, portable, feeding))
    if towers:
        plain = Layer(8) if portable or text == "int8-web" else Layer(8, BLOCK, activations="block")
        chosen |= {name: plain for name in shapes if name.partition(".")[0] in TOWERS}
    return chosen


def _decide(
    shapes: Mapping[str, tuple[int, int]],
    text: Layer,
    draw: Layer,
    drawing_depth: int,
    portable: bool,
    feeding: Layer | None,
) -> Iterator[tuple[str, Layer]]:
    read = {name: rows * width for name, (rows, width) in shapes.items() if side_of(name) == "text"}
    fed = _layers_that_feed(shapes, drawing_depth)
    tight = text.bits == 4 or read.get(HEAD, 0) > HEAVY * sum(read.values())
    for name, (rows, width) in shapes.items():
        if side_of(name) == "text" and text.bits is not None:
            if name == HEAD and portable:
                yield name, Layer(None, reason="looked up and multiplied with: it stays in the target's own float")
            else:
                layer = _text_layer(name, width, text, drawing_depth, fed, feeding)
                if name == HEAD and layer.bits and drawing_depth and tight and rows >= 2 * FREQUENT[text.bits]:
                    yield name, replace(layer, rows=FREQUENT[text.bits])
                    yield (
                        name + REST,
                        replace(layer, bits=4, group=BLOCK, reason="tokens that are seldom said"),
                    )
                else:
                    yield name, layer
        elif name.startswith("image_encoder.") and text.bits is not None and not portable:
            yield from _image_encoder_layers(
                name, rows, width, IMAGE_ENCODER + IMAGE_ENCODER_TIGHT if tight else IMAGE_ENCODER
            )
        elif side_of(name) == "draw" and draw.bits is not None:
            yield name, _draw_layer(name, draw)


def _decide_for_web(shapes: Mapping[str, tuple[int, int]], text: Layer, draw: Layer) -> Iterator[tuple[str, Layer]]:
    """Of reading only the head and what sees multiply whole numbers, and drawing does so in two terms: 8 bits of a
    layer's inputs turn the last digit of a float, which is another in wasm, into another picture or reply
    (docs/embedding-web.md)."""
    head = Layer(8, activations="token")
    for name, (rows, width) in shapes.items():
        if side_of(name) == "text":
            yield name, head if name == HEAD else replace(text, reason=LAST_DIGIT)
        elif name.startswith("image_encoder."):
            for _, layer in _image_encoder_layers(name, rows, width, IMAGE_ENCODER + IMAGE_ENCODER_TIGHT):
                yield name, layer if layer.bits == 8 else replace(head, reason=layer.reason)
        elif side_of(name) == "draw" and draw.bits is not None:
            layer = _draw_layer(name, draw)
            yield name, replace(layer, activations="token16", reason=LAST_DIGIT) if layer == draw else layer


def _image_encoder_layers(
    name: str, rows: int, width: int, table: tuple[tuple[str, int, Layer], ...]
) -> Iterator[tuple[str, Layer]]:
    for pattern, least, layer in table:
        if re.fullmatch(rf"image_encoder\.{pattern}", name) and rows * width >= least and width % layer.group == 0:
            yield name, layer


def _layers_that_feed(shapes: Iterable[str], drawing_depth: int) -> int:
    """How many of the transformer's layers, from the first, keep 8 bits for what drawing reads: all below the last that
    it reads, but no more than half of the model, behind which rounding is passed on less far."""
    numbers = [int(found[1]) for name in shapes if (found := re.match(r"transformer\.layers\.(\d+)\.", name))]
    return min(drawing_depth - 1, (max(numbers, default=-1) + 2) // 2) if drawing_depth else 0


def _text_layer(
    name: str, width: int, asked: Layer, drawing_depth: int, fed: int, feeding: Layer | None = None
) -> Layer:
    if name == HEAD:
        if width % BLOCK:
            return Layer(None, reason=f"its width {width} is no multiple of {BLOCK}")
        group = BLOCK if width % WIDE else WIDE
        return Layer(8, group, activations="block", reason="the embedding is the head: a coarse one costs twice")
    numbered = re.search(r"layers\.(\d+)\.", name)
    feeds = asked.bits == 4 and asked.form == "int" and numbered and int(numbered[1]) < fed
    if feeding and (feeds or _layer_number(CACHED, name) < min(fed + 1, drawing_depth)):
        layer = _text_layer(name, width, feeding, drawing_depth, fed)
        return replace(layer, reason=layer.reason or READ_AT_EVERY_STEP)
    if asked.bits == 4 and not asked.symmetric and (feeds or TENDER.search(name)):
        group = next((size for size in WIDE_BLOCKS if width % size == 0), BLOCK)
        reason = READ_AT_EVERY_STEP if feeds else "4 bits lose most here"
        return Layer(8, group, activations=asked.activations, reason=reason)
    drawn = re.search(r"layers\.(\d+)\.(?:self_attn\.[kv]_proj|mlp\.down_proj)$", name)
    if asked.form == "nvfp4" and drawn and int(drawn[1]) < drawing_depth:
        return Layer(8, reason=READ_AT_EVERY_STEP)
    if feeds or (asked.bits == 4 and drawn and int(drawn[1]) < drawing_depth):
        return Layer(8, 0, asked.symmetric, asked.activations, reason=READ_AT_EVERY_STEP)
    if asked.activations in ("tensor", "token", "static", "fp8") and name.endswith(".down_proj"):
        safe = Layer(8) if asked.activations in ("static", "fp8") else Layer(8, activations="token16")
        return replace(safe, reason=OUTLIERS)
    if asked.activations == "token" and _layer_number(READ, name) < drawing_depth:
        return replace(asked, activations="token16", reason=READ_AT_EVERY_STEP)
    if asked == TEXT["int4"].portable and width % asked.group:
        return Layer(8, 0, reason=f"its width {width} is no multiple of {asked.group}, as NVIDIA's parser wants blocks")
    return asked


def _layer_number(pattern: re.Pattern[str], name: str) -> float:
    """Of a layer that the pattern is about; infinite for others."""
    found = pattern.search(name)
    return int(found[1]) if found else math.inf


def _draw_layer(name: str, asked: Layer) -> Layer:
    if name in ("denoiser.embed", "denoiser.head"):
        return Layer(None, reason="next to the picture's own numbers")
    if asked.bits == 4 and not re.search(r"\.blocks\.\d+\.(qkv|o|up|down)_proj$", name):
        group = 0 if asked.symmetric else asked.group  # no target but a CPU takes 8 bits in blocks
        return Layer(8, group, asked.symmetric, asked.activations, reason="small, and it steers every block")
    return asked
