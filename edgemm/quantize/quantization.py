"""A checkpoint's model and a caller's words -> a spec: calibrate, smooth, calibrate again, round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from edgemm import progress
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration, Inputs, observe, places_of, read_calibration
from edgemm.quantize.layers import choose_layers, layers_of, side_of
from edgemm.quantize.make import Prepared, make_spec, read_method, smooth
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.schemes import methods_of
from edgemm.quantize.simulated import cache_steps, weights_of
from edgemm.quantize.spec import HEAD, RANGED, REST, Layer, Spec

__all__ = ["prepare", "quantize", "quantize_without_data"]


def quantize(model: Unified, options: QuantizeOptions | None = None, checkpoint: tuple[str, str] = ("", "")) -> Spec:
    """The spec; `checkpoint` is the model's name and hash.

    Smoothing is folded into `model` itself, which computes the same as before.
    """
    progress.status("quantizing")
    options = options or QuantizeOptions()
    chosen = layers_of(model, options.text, options.draw, options.portable)
    data = read_calibration(options.calibration, model, options.samples)
    ready = prepare(model, chosen, methods_of(options), data, options.steps)
    if options.cache == "int8":
        ready = replace(ready, cache=cache_steps(model, data))
    if chosen.get(HEAD, Layer(None)).rows:
        ready = replace(ready, places=places_of(model, data))
    return make_spec(weights_of(model), chosen, ready, (options.text, options.draw), checkpoint, options.rank)


def quantize_without_data(weights: Mapping[str, Tensor], options: QuantizeOptions, drawing_depth: int = 0) -> Spec:
    """Any family's weights (n, k), by layer, rounded as their width suggests; drawing reads layers below
    `drawing_depth`."""
    shapes = {name: (len(weight), weight.shape[1]) for name, weight in weights.items()}
    chosen = choose_layers(shapes, options.text, options.draw, drawing_depth, options.portable)
    return make_spec(weights, chosen, asked=(options.text, options.draw))


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
        return Prepared(read)
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
