"""A model whose layer groups can be set to float, 8 or 4 bits one by one: what the search walks over (search.py).

Both precisions' numbers are made once, from the same smoothed weights; setting a group is an exchange of modules.  A
group is a layer of the transformer, a block of the denoiser, frequent or rare tokens' rows of the embedding, or what is
left of a component.  What sees pictures stays as the recipe has it: neither judge looks there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from edgemm.model.unified import Unified
from edgemm.quantize.calibration import Calibration, order_of, places_of, read_calibration
from edgemm.quantize.layers import INT4, layers_of, methods_of, side_of
from edgemm.quantize.make import make_spec, prepare
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import QuantizedLinear, quantizable, weights_of
from edgemm.quantize.spec import HEAD, PLACES, REST, Layer, Spec, tensors_hash
from edgemm.search.judges import layer_signals

__all__ = [
    "FLOAT",
    "Choice",
    "Levels",
    "coarser",
    "divergence",
    "group_of",
    "log_probabilities",
    "make_levels",
    "layer_bytes",
    "size_bytes",
]

FLOAT = 32  # bits; the other levels are 8 and 4
Choice = Mapping[str, int]  # group -> a level; a group that it leaves out has 8 bits


def group_of(layer: str) -> str:
    numbered = re.match(r"\w+\.(?:layers|blocks)\.\d+", layer)
    if numbered:
        return numbered[0]
    return layer if layer.removesuffix(REST) == HEAD else layer.partition(".")[0]


def coarser(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The same layers in 4 bits; an embedding that is looked up has no zero-points."""
    return {
        name: dataclasses.replace(INT4, symmetric=name.removesuffix(REST) == HEAD, rows=layer.rows)
        for name, layer in layers.items()
        if layer.bits and side_of(name)
    }


def make_levels(model: Unified, options: QuantizeOptions, checkpoint: tuple[str, str]) -> Levels:
    """Smoothing is folded into `model` itself, once for both precisions."""
    fine = layers_of(model, options.text, options.draw)
    for name, layer in layers_of(model, "int4", options.draw).items():
        if name.removesuffix(REST) == HEAD:  # frequent and rare tokens are groups
            fine[name] = dataclasses.replace(layer, bits=8)
        elif not side_of(name):  # what sees pictures, where bytes matter
            fine[name] = layer
    data = read_calibration(options.calibration, model, options.samples)
    tables = {name: layer for name, layer in coarser(fine).items() if name.removesuffix(REST) == HEAD}
    ready = prepare(model, fine | tables, methods_of(options), data, options.steps)
    ready = dataclasses.replace(ready, places=places_of(model, data))
    specs = [
        make_spec(weights_of(model), layers, ready, ("auto", "auto"), checkpoint, options.rank)
        for layers in (fine, coarser(fine))
    ]
    return Levels(model, data, *specs)


class Levels:
    """`model` is smoothed already, and is changed by `set`."""

    def __init__(self, model: Unified, data: Calibration, fine: Spec, coarse: Spec) -> None:
        self.model, self.data = model, data
        self.specs = {8: fine, 4: coarse}
        self._signals = {FLOAT: {}, 8: layer_signals(model, fine), 4: layer_signals(model, coarse)}
        self.float = {name: part for name, part in quantizable(model).items() if name in fine.document.layers}
        self.groups: dict[str, list[str]] = {}  # group -> its layers, those that may be set
        for name in coarse.document.layers:
            self.groups.setdefault(group_of(name), []).append(name)
        self._made: dict[tuple[str, int], nn.Module] = {}
        self._now: dict[str, int] = {}
        for name, layer in fine.document.layers.items():
            if layer.bits and not side_of(name):
                self._exchange(name, 8)

    def side(self, group: str) -> str:
        return side_of(self.groups[group][0])

    def set(self, choice: Choice) -> None:
        for group, names in self.groups.items():
            level = choice.get(group, 8)
            if self._now.get(group) != level:
                for name in names:
                    self._exchange(name, level)
                self._now[group] = level

    def _exchange(self, name: str, level: int) -> None:
        if name.removesuffix(REST) == HEAD:
            self._set_rows(name, level)
            return
        plain = self.float.get(name)
        if not isinstance(plain, nn.Linear):  # of what sees pictures: only its numbers are stored small
            weights_of(self.model)[name].copy_(self.specs[level].dequantized(name))
            return
        if (name, level) not in self._made and level != FLOAT:
            spec = self.specs[level]
            self._made[name, level] = QuantizedLinear(plain, spec.layer(name), spec, name)
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, self._made.get((name, level), plain))

    def _set_rows(self, name: str, level: int) -> None:
        """The embedding is one table; it is never left in float, whose 8 bits cost nothing."""
        assert level != FLOAT
        rows = self.specs[level].integers(name).dequantized()
        start, places = self.specs[8].layer(HEAD).rows if name.endswith(REST) else 0, self.specs[8].places(HEAD)
        table = cast(Tensor, self.float[HEAD].weight).data
        order = torch.arange(len(table)) if places is None else order_of(torch.from_numpy(places))
        table[order[start : start + len(rows)]] = rows

    def bytes_of(self, choice: Choice) -> int:
        """Of all weights that a spec names, float ones included."""
        return sum(self.layer_bytes(name, self.level(name, choice)) for name in self.specs[8].document.layers)

    def products(self, choice: Choice) -> Iterator[tuple[str, tuple[int, int], Layer, str]]:
        """Name, shape (n, k), form and side of every product that the judges hear."""
        for name in self.specs[8].document.layers:
            side, level = side_of(name), self.level(name, choice)
            if side and self.specs[8].layer(name).bits:
                n, k = self.specs[8].tensors[f"{name}.codes"].shape
                yield name, (n, k), Layer(None) if level == FLOAT else self.specs[level].layer(name), side

    def layer_bytes(self, name: str, level: int) -> int:
        if self.specs[8].layer(name).bits is None or level == FLOAT:
            codes = self.specs[8].tensors.get(f"{name}.codes")
            return 4 * int(codes.size if codes is not None else cast(Tensor, self.float[name].weight).numel())
        return layer_bytes(self.specs[level].layer(name), *self.specs[level].tensors[f"{name}.codes"].shape)

    def level(self, name: str, choice: Choice) -> int:
        return choice.get(group_of(name), 8) if name in self.groups.get(group_of(name), ()) else 8

    def signals(self, choice: Choice) -> dict[str, float]:
        """Layer -> dB of its weight over what rounding added."""
        levels = {name: self.level(name, choice) for name in self.specs[8].document.layers}
        return {name: self._signals[level][name] for name, level in levels.items() if name in self._signals[level]}

    def spec(self, choice: Choice) -> Spec:
        """One spec of what the choice says."""
        layers: dict[str, Layer] = {}
        tensors = {name: array for name, array in self.specs[8].tensors.items() if name.endswith(".smooth")}
        for name, layer in self.specs[8].document.layers.items():
            level = self.level(name, choice)
            if level == FLOAT:
                layers[name] = Layer(None, reason="the budget asks for it")
                continue
            layers[name] = self.specs[level].layer(name) if layer.bits else layer
            for key, array in self.specs[level].tensors.items():
                if key.rpartition(".")[0] == name and not key.endswith(".smooth"):
                    tensors[key] = array
        document = dataclasses.replace(
            self.specs[8].document, layers=layers, tensors_sha256=tensors_hash(tensors), text="auto", draw="auto"
        )
        return Spec(document, tensors)


def divergence(found: Tensor, wanted: Tensor) -> float:
    """Mean Kullback-Leibler divergence of log-probabilities (s, vocab) from those wanted."""
    return float((wanted.exp() * (wanted - found)).sum(-1).mean().clamp(min=0))


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    """ids (1, s) -> (s, vocab)."""
    transformer = model.get_submodule("transformer")
    limit = torch.arange(ids.shape[1])[None]
    hidden, _ = transformer(transformer.embed_tokens(ids), limit)  # type: ignore[operator]
    return transformer.logits(hidden)[0].log_softmax(-1)  # type: ignore[operator]


# What quantized weights take on disk, as CPUs' bundles have them (edgemm/export/specs.py).
#
#     codes        4 or 8 bits
#     scales       of groups float16, of whole rows float32; of small floats as number_formats.py says
#     zero-points  as many bits as a code, where numbers are not symmetric
#     branches     float32
# What stays in float is not counted.  Axes: n output channels, k input channels, g groups of a row.


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
