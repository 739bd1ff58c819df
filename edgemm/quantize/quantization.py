"""A checkpoint's model and a caller's words -> a spec: calibrate, smooth, calibrate again, round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration, observe, read_calibration
from edgemm.quantize.inputs import Inputs
from edgemm.quantize.make import RANK, Method, make_spec, read_method, smooth
from edgemm.quantize.quantized_linear import quantizable
from edgemm.quantize.recipe import layers_of, side_of
from edgemm.quantize.spec import HEAD, Layer, Spec

__all__ = ["DEFAULT_METHODS", "quantize"]

DEFAULT_METHODS = {"text": "awq+gptq", "draw": "smoothquant"}

Say = Callable[[str], None]


def quantize(
    model: Unified,
    text: str,
    draw: str,
    methods: Mapping[str, str] = DEFAULT_METHODS,
    calibration: Path | None = None,
    samples: int | None = None,
    steps: int | None = None,
    portable: bool = False,
    rank: int = RANK,
    checkpoint: tuple[str, str] = ("", ""),
    layers: Mapping[str, Layer] | None = None,
    status: Say = lambda text: None,
) -> Spec:
    """The spec.  Smoothing is folded into `model` itself, which computes the same as before."""
    chosen = layers_of(model, text, draw, portable) if layers is None else layers
    read = {side: read_method(words) for side, words in methods.items()}
    sides = {side: any(layer.bits for name, layer in chosen.items() if side_of(name) == side) for side in read}
    static = any(layer.activations == "static" for layer in chosen.values())
    needs_data = static or any(method.needs_data and sides[side] for side, method in read.items())
    data = read_calibration(calibration, model, samples) if needs_data else None
    steps = steps or model.config.sampler.num_inference_steps
    smoothed = {}
    if data is not None and any(method.smooths and sides[side] for side, method in read.items()):
        inputs = _observe(
            model, chosen, read, data, sides, steps, {s for s in read if read[s].smooths == "awq"}, status
        )
        smoothed = smooth(model, chosen, read, inputs)
    seen = None
    if data is not None:
        seen = _observe(model, chosen, read, data, sides, steps, {s for s in read if read[s].rounds == "gptq"}, status)
    name = data.name if data else ""
    weights = {name: part.weight.flatten(1) for name, part in quantizable(model).items()}  # type: ignore[operator]
    return make_spec(weights, chosen, read, seen, smoothed, (text, draw), checkpoint, name, rank, status)


def _observe(
    model: Unified,
    layers: Mapping[str, Layer],
    methods: Mapping[str, Method],
    data: Calibration,
    sides: Mapping[str, bool],
    steps: int,
    with_gram: set[str],
    status: Say,
) -> Inputs:
    status("running the calibration data")
    wanted = [name for name, layer in layers.items() if layer.bits and not name.startswith(HEAD) and side_of(name)]
    gram = [name for name in wanted if side_of(name) in with_gram]
    return observe(model, data, Inputs(wanted, gram), sides["text"], sides["draw"], steps)
