"""A checkpoint's model and a caller's words -> a spec: calibrate, smooth, calibrate again, round.

A method is words joined by +: at most one that smooths (awq, smoothquant), one that branches (svd) and one that rounds
(rtn, kquant, gptq); left out, 4 bits are rounded by kquant and 8 by rtn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

import edgemm
from edgemm import progress
from edgemm.errors import InputError, UsageError
from edgemm.model.kept_weights import widened
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration, Inputs, observe, order_of, places_of, read_calibration
from edgemm.quantize.layers import layers_of, methods_of, side_of
from edgemm.quantize.number_formats import Floats, Integers, joined, to_floats
from edgemm.quantize.options import RANK, QuantizeOptions
from edgemm.quantize.rounding import DAMPING, gptq, kquant, low_rank_branch, rtn
from edgemm.quantize.simulated import cache_steps, weights_of
from edgemm.quantize.smoothing import Site, awq_factors, fold, sites, smoothquant_factors
from edgemm.quantize.spec import (
    CACHE,
    HEAD,
    PLACES,
    RANGED,
    REST,
    SCHEMA_VERSION,
    Document,
    Layer,
    Spec,
    tensor_parts,
    tensors_hash,
)

__all__ = [
    "METHODS",
    "Method",
    "Prepared",
    "make_layer",
    "make_spec",
    "prepare",
    "quantize",
    "read_method",
    "rows_of",
    "smooth",
]


def quantize(model: Unified, options: QuantizeOptions | None = None, checkpoint: tuple[str, str] = ("", "")) -> Spec:
    """The spec; `checkpoint` is the model's name and hash.

    Smoothing is folded into `model` itself, which computes the same as before.
    """
    progress.status("quantizing")
    options = options or QuantizeOptions()
    chosen = layers_of(model, options.text, options.draw, options.portable)
    methods = methods_of(options)
    if options.rank != RANK and not any(read_method(words).branches for words in methods.values()):
        raise UsageError(f"--rank {options.rank} is of svd's branch, and no side has one: give --method svd, too")
    data = read_calibration(options.calibration, model, options.samples)
    ready = prepare(model, chosen, methods, data, options.steps)
    if options.cache == "int8":
        ready = replace(ready, cache=cache_steps(model, data))
    if chosen.get(HEAD, Layer(None)).rows:
        ready = replace(ready, places=places_of(model, data))
    if options.calibration and not (ready.data or ready.cache or ready.places is not None):
        progress.line(f"{options.calibration}: not used, for these precisions and methods want no data")
    return make_spec(weights_of(model), chosen, ready, (options.text, options.draw), checkpoint, options.rank)


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


METHODS = {
    "awq": "smooths",
    "smoothquant": "smooths",
    "svd": "branches",
    "rtn": "rounds",
    "kquant": "rounds",
    "gptq": "rounds",
}
AT_ONCE = 1 << 22  # numbers that are rounded together: the search holds some ten copies of them
LOOKED_UP = 1.0  # GPTQ's damping of an embedding: a lookup sees every error, whatever the head's inputs are


@dataclass(frozen=True)
class Method:
    smooths: str = ""
    branches: str = ""
    rounds: str = ""

    def __str__(self) -> str:
        return "+".join(filter(None, (self.smooths, self.branches, self.rounds)))


def read_method(words: str) -> Method:
    found: dict[str, str] = {}
    for word in filter(None, words.split("+")):
        if word not in METHODS:
            raise UsageError(f"method {word!r} is none of: {', '.join(METHODS)}")
        if METHODS[word] in found:
            raise UsageError(f"method {words!r}: {found[METHODS[word]]} and {word} are two ways to do one thing")
        found[METHODS[word]] = word
    return Method(**found)


@torch.no_grad()
def smooth(
    model: Unified, layers: Mapping[str, Layer], methods: Mapping[str, Method], inputs: Inputs
) -> dict[str, Tensor]:
    """Folds the factors into `model` itself, and answers with them: site -> factors (k)."""
    found: dict[str, Tensor] = {}
    # Beside inputs of one scale a token, blocks need no smoothing; by themselves they gain a little by it.
    mixed = {side_of(name) for name, layer in layers.items() if layer.bits and layer.activations == "token"}
    for name, site in sites(model).items():
        method = _method(methods, name)
        read = [layers.get(reader, Layer(None)) for reader in site.readers]
        if not method.smooths or not any(layer.bits for layer in read):
            continue
        apart = {"token16", "block"} if method.smooths == "smoothquant" and side_of(name) in mixed else {"token16"}
        if {layer.activations for layer in read} <= apart:
            continue  # they hold a few large inputs, and weights would share a scale with what was moved into them
        factors = _factors(model, site, layers, method, inputs)
        if not torch.isfinite(factors).all():
            raise InputError(f"{name}: smoothing gave factors that are not finite")
        fold(model, site, factors)
        found[name] = factors
    return found


def _factors(model: nn.Module, site: Site, layers: Mapping[str, Layer], method: Method, inputs: Inputs) -> Tensor:
    record = inputs.of(site.readers[0])
    weights = [model.get_submodule(reader).weight for reader in site.readers]
    if method.smooths == "awq":
        wanted = [layers.get(reader, Layer(None)) for reader in site.readers]
        return awq_factors(weights, wanted, record.gram())  # type: ignore[arg-type]
    return smoothquant_factors(weights, record.largest)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was seen of the calibration data, and done before the first number."""

    methods: Mapping[str, Method] = field(default_factory=dict)  # "text" and "draw"
    inputs: Inputs | None = None  # seen after smoothing
    smoothed: Mapping[str, Tensor] = field(default_factory=dict)  # site -> factors (k)
    data: str = ""  # what it was
    cache: Mapping[str, Tensor] = field(default_factory=dict)  # steps of an int8 K/V cache
    places: Tensor | None = None  # of the embedding's rows, as calibration.py has them


@torch.no_grad()
def make_spec(
    weights: Mapping[str, Tensor],  # (n, k), all that layers name
    layers: Mapping[str, Layer],
    prepared: Prepared = Prepared(),
    asked: tuple[str, str] = ("", ""),
    checkpoint: tuple[str, str] = ("", ""),
    rank: int = RANK,
) -> Spec:
    """The numbers of the weights as they are now; `asked` is the text and the draw word, `checkpoint` its name and
    hash."""
    tensors = {f"{site}.smooth": factors.numpy() for site, factors in prepared.smoothed.items()}
    tensors |= {f"{CACHE}{name}": steps.numpy() for name, steps in prepared.cache.items()}
    if prepared.places is not None and layers.get(HEAD, Layer(None)).rows:
        tensors[f"{HEAD}.{PLACES}"] = prepared.places.numpy()
        weights = {**weights, HEAD: weights[HEAD][order_of(prepared.places)]}
    made: dict[str, Layer] = {}
    for name, layer in progress.track(layers.items(), len(layers), "rounding", "layers"):
        made[name] = layer
        if layer.bits is not None:
            made[name], numbers = make_layer(rows_of(weights, name, layers), name, layer, prepared, rank)
            tensors |= numbers
    document = Document(
        schema_version=SCHEMA_VERSION,
        edgemm_version=edgemm.__version__,
        checkpoint=checkpoint[0],
        checkpoint_sha256=checkpoint[1],
        text=asked[0],
        draw=asked[1],
        calibration=prepared.data,
        layers=made,
        smoothed=tuple(prepared.smoothed),
        tensors_sha256=tensors_hash(tensors),
        cache="int8" if prepared.cache else "float",
    )
    return Spec(document, tensors)


def rows_of(weights: Mapping[str, Tensor], name: str, layers: Mapping[str, Layer]) -> Tensor:
    """What a layer is about: all of a weight, or its first rows, or the rest."""
    if name.endswith(REST):
        whole = name.removesuffix(REST)
        return weights[whole][layers[whole].rows :]
    return weights[name][: layers[name].rows or None]


def _method(methods: Mapping[str, Method], name: str) -> Method:
    """The calibration data holds no pictures, so what sees them is rounded without; no branch or factor is beside an
    embedding, whose rows are looked up, too."""
    method = methods.get(side_of(name), Method())
    return Method(rounds=method.rounds) if name.removesuffix(REST) == HEAD else method


def make_layer(
    weight: Tensor, name: str, layer: Layer, prepared: Prepared, rank: int
) -> tuple[Layer, dict[str, np.ndarray]]:
    """The layer with what was done to it, and its tensors."""
    inputs, method = prepared.inputs, _method(prepared.methods, name)
    tensors: dict[str, np.ndarray] = {}
    if method.branches and layer.bits == 4:
        down, up = low_rank_branch(_finite(weight, name), _need(inputs, name).of(name).squares(), rank)
        weight = _finite(weight, name) - up @ down
        layer = dataclasses.replace(layer, rank=len(down))
        tensors |= {f"{name}.low_rank_down": down.numpy(), f"{name}.low_rank_up": up.contiguous().numpy()}
    rounds = _rounds(method, layer, name, inputs)
    numbers = _round(rounds, weight, layer, name, inputs)
    tensors |= {f"{name}.{part}": getattr(numbers, part).numpy() for part in tensor_parts(layer)}
    if layer.activations in RANGED:
        steps = _need(inputs, name).of(name).by_step
        tensors[f"{name}.range"] = np.array([steps[step] for step in sorted(steps)], np.float32)
    said = Method(method.smooths, method.branches if layer.rank else "", rounds)
    return dataclasses.replace(layer, method=str(said)), tensors


def _rounds(method: Method, layer: Layer, name: str, inputs: Inputs | None) -> str:
    """Rare tokens' rows make up for their errors wherever text was read; frequent ones' 8 bits need no such care."""
    plain = "kquant" if layer.bits == 4 and layer.form == "int" else "rtn"
    if name.removesuffix(REST) == HEAD and method.rounds in ("", "gptq"):
        return "gptq" if plain == "kquant" and inputs and inputs.knows(HEAD) else plain
    return method.rounds or plain


def _finite(weight: Tensor, name: str) -> Tensor:
    """Its numbers in float32 and in memory."""
    found = widened(weight.detach()).float()
    if not torch.isfinite(found).all():
        raise InputError(f"{name}: its weight is not finite")
    return found


def _round(rounds: str, weight: Tensor, layer: Layer, name: str, inputs: Inputs | None) -> Integers | Floats:
    assert layer.bits is not None
    if layer.form == "int" and rounds != "gptq":  # a row knows nothing of the others
        at_once = max(1, AT_ONCE // weight.shape[1])
        rows = (_finite(weight[start : start + at_once], name) for start in range(0, len(weight), at_once))
        choose = kquant if rounds == "kquant" else rtn
        return joined([choose(part, layer.bits, layer.group, layer.symmetric) for part in rows])
    weight = _finite(weight, name)
    if layer.form != "int":
        if rounds != "rtn":
            raise UsageError(f"{name}: {rounds} chooses whole numbers, {layer.form} is rounded to nearest (rtn)")
        return to_floats(weight, layer.form, name)
    damping = LOOKED_UP if name.removesuffix(REST) == HEAD else DAMPING
    return gptq(weight, _need(inputs, name).of(name).gram(), layer.bits, layer.group, layer.symmetric, damping)


def _need(inputs: Inputs | None, name: str) -> Inputs:
    if inputs is None:
        raise UsageError(f"{name}: this method or static ranges need calibration data")
    return inputs
