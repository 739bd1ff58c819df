"""A checkpoint's model and a caller's words -> a spec: calibrate, smooth, calibrate again, round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgemm import progress
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration, Inputs, observe, places_of, read_calibration
from edgemm.quantize.layers import layers_of, side_of
from edgemm.quantize.make import RANK, Method, make_spec, read_method, smooth
from edgemm.quantize.simulated import cache_steps, weights_of
from edgemm.quantize.spec import HEAD, RANGED, REST, Layer, Spec

__all__ = ["SUITED", "Prepared", "prepare", "quantize"]

SUITED = {  # what brings a precision within the project's bars (benchmarks/quantization.py)
    "fp16": "",
    "int8": "smoothquant",
    "w8a8": "smoothquant",
    "int4": "awq+gptq",
    "fp8": "",
    "nvfp4": "",
    "nvfp4-weights": "",
    "w4a8": "smoothquant+svd",
}


def quantize(
    model: Unified,
    text: str,
    draw: str,
    methods: Mapping[str, str] | None = None,  # "text" and "draw"; None: what suits the precision
    calibration: Path | None = None,
    samples: int | None = None,
    steps: int | None = None,
    portable: bool = False,
    rank: int = RANK,
    checkpoint: tuple[str, str] = ("", ""),
    cache: str = "float",  # a word of simulated.py
) -> Spec:
    """The spec.  Smoothing is folded into `model` itself, which computes the same as before."""
    progress.status("quantizing")
    chosen = layers_of(model, text, draw, portable)
    methods = {"text": SUITED[text], "draw": SUITED[draw]} if methods is None else methods
    data = read_calibration(calibration, model, samples)
    ready = prepare(model, chosen, methods, data, steps)
    rounded = cache_steps(model, data) if cache == "int8" else None
    places = places_of(model, data) if chosen.get(HEAD, Layer(None)).rows else None
    return make_spec(
        weights_of(model),
        chosen,
        ready.methods,
        ready.inputs,
        ready.smoothed,
        (text, draw),
        checkpoint,
        ready.name,
        rank,
        rounded,
        places,
    )


@dataclass(frozen=True)
class Prepared:
    """What was seen of the calibration data, and done before the first number."""

    methods: dict[str, Method]
    inputs: Inputs | None
    smoothed: dict[str, Tensor]
    name: str


def prepare(
    model: Unified,
    layers: Mapping[str, Layer],
    methods: Mapping[str, str],
    data: Calibration,
    steps: int | None = None,
) -> Prepared:
    """Calibrate, fold the smoothing into `model` itself, calibrate again where the numbers want it."""
    read = {side: read_method(words) for side, words in methods.items()}
    quantized = {side_of(name) for name, layer in layers.items() if layer.bits}
    ranged = {side_of(name) for name, layer in layers.items() if layer.activations in RANGED}
    before = {side for side, method in read.items() if side in quantized and method.smooths}
    after = {side for side, m in read.items() if side in quantized and (m.branches or m.rounds == "gptq")} | ranged
    rare = any(_is_rare(name, layer) for name, layer in layers.items())
    if rare and "text" in before | after and read["text"].rounds in ("", "gptq"):
        after |= {"text"}
    if not before | after:
        return Prepared(read, None, {}, "")
    steps = steps or model.config.sampler.num_inference_steps
    smoothed: dict[str, Tensor] = {}
    if before:
        with_gram = {side for side in before if read[side].smooths == "awq"}
        smoothed = smooth(model, layers, read, _observe(model, layers, data, before, steps, with_gram))
    with_gram = {side for side in after if read[side].rounds == "gptq"}
    seen = _observe(model, layers, data, after, steps, with_gram) if after else None
    return Prepared(read, seen, smoothed, data.name)


def _is_rare(name: str, layer: Layer) -> bool:
    """Rows of the embedding that the head's inputs help to round."""
    return name.removesuffix(REST) == HEAD and layer.bits == 4 and layer.form == "int"


def _observe(
    model: Unified,
    layers: Mapping[str, Layer],
    data: Calibration,
    sides: Collection[str],
    steps: int,
    with_gram: Collection[str],
) -> Inputs:
    wanted = [name for name, layer in layers.items() if layer.bits and side_of(name) in sides]
    wanted = [name for name in wanted if not name.startswith(HEAD) or _is_rare(name, layers[name])]
    gram = [name for name in wanted if side_of(name) in with_gram or name.startswith(HEAD)]
    return observe(model, data, Inputs(wanted, gram), "text" in sides, "draw" in sides, steps)
