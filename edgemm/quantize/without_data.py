"""Any model's weights rounded as they are, a layer at a time, when a lowering asks for it: no spec holds them all.

Of four billion numbers the codes alone would take as many bytes.  Two layers may be one weight under two names, which
then gets the same numbers: they are rounded once, and wait for the second reader in a file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

import edgemm
from edgemm.quantize.layers import IN_BLOCKS, OUTLIERS, choose_layers
from edgemm.quantize.make import Prepared, make_layer, rows_of
from edgemm.quantize.options import RANK, QuantizeOptions
from edgemm.quantize.spec import RANGED, SCHEMA_VERSION, Document, Layer, Spec, tensor_parts

__all__ = ["quantize_without_data"]

NO_TWINS: Mapping[str, str] = MappingProxyType({})


def quantize_without_data(
    weights: Mapping[str, Tensor],
    options: QuantizeOptions,
    drawing_depth: int = 0,
    twins: Mapping[str, str] = NO_TWINS,  # another name of a layer -> the layer
    towers: bool = False,
    scratch: Path | None = None,  # on whose disk there is room for the codes of what has twins; None: the system's own
    one_term: Collection[str] = (),  # layers that were seen to bear 8 bits of inputs
    calibration: str = "",  # what they were seen to read
) -> Spec:
    """Weights (n, k) by layer, rounded as their width suggests; `drawing_depth` and `towers` as choose_layers has
    them."""
    shapes = {name: (len(weight), weight.shape[1]) for name, weight in weights.items()}
    text = IN_BLOCKS.get(options.text, options.text)
    chosen = choose_layers(shapes, text, options.draw, drawing_depth, options.portable, towers)
    chosen = {name: _without_ranges(_in_terms(name, layer, shapes, one_term)) for name, layer in chosen.items()}
    layers = chosen | {twin: _as_twin(name, chosen[name]) for twin, name in twins.items() if name in chosen}
    document = Document(
        schema_version=SCHEMA_VERSION,
        edgemm_version=edgemm.__version__,
        checkpoint="",
        checkpoint_sha256="",
        text=text,
        draw=options.draw,
        calibration=calibration,
        layers=layers,
        smoothed=(),  # whose factors are beside the codes; what a family folded is in the weights, and nobody asks
        tensors_sha256="",  # a spec that is stored has all its numbers: make.py
    )
    return Spec(document, RoundedWhenRead(weights, chosen, twins, scratch), towers)


ATTENTION = re.compile(r"layers\.\d+\.self_attn\.[qkv]_proj$")
LAST = re.compile(r"layers\.(\d+)\.mlp\.(?:gate|up)_proj$")
AT_THE_END = 10  # one layer of so many is among the last
NOT_SMOOTHED = "a few of its inputs are large, and nothing smooths them"


def _in_terms(name: str, layer: Layer, names: Iterable[str], one_term: Collection[str]) -> Layer:
    """8 bits of inputs, or 16 in two terms; what drawing reads keeps its 16."""
    if name in one_term:
        return replace(layer, activations="token", reason="") if layer.reason == OUTLIERS else layer
    return _not_smoothed(name, layer, names)


def _not_smoothed(name: str, layer: Layer, names: Iterable[str]) -> Layer:
    """16 bits of inputs in place of 8 where unsmoothed ones lose most: queries, keys and values, and gate and up of the
    last layers (docs/notes/cpu-speed.md)."""
    if layer.activations != "token":
        return layer
    depth = 1 + max((int(found[1]) for found in map(LAST.search, names) if found), default=0)
    last = LAST.search(name)
    if ATTENTION.search(name) or (last and int(last[1]) >= depth - -(-depth // AT_THE_END)):
        return replace(layer, activations="token16", reason=NOT_SMOOTHED)
    return layer


def _without_ranges(layer: Layer) -> Layer:
    """Ranges of inputs are seen in data: without, the weight alone is rounded."""
    return replace(layer, activations="float") if layer.activations in RANGED and layer.form == "int" else layer


def _as_twin(name: str, layer: Layer) -> Layer:
    """A picture's rows are many: one range for all of them serves, and is found in one pass."""
    alike = layer.activations.startswith("token") and not name.endswith(".down_proj")
    return replace(layer, activations="tensor") if alike else layer


class RoundedWhenRead(Mapping[str, np.ndarray]):
    """NAME.codes and the rest of a spec, of which the last layer's are remembered, and in a file those of twins."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        layers: Mapping[str, Layer],
        twins: Mapping[str, str],
        scratch: Path | None = None,
    ) -> None:
        self._weights, self._layers = weights, layers
        own = {name: name for name, layer in layers.items() if layer.bits is not None}
        both = {twin: name for twin, name in twins.items() if name in own}
        own |= both
        self._places = {f"{name}.{part}": one for name, one in own.items() for part in tensor_parts(layers[one])}
        self._last, self._numbers = "", dict[str, np.ndarray]()
        self._folder = tempfile.TemporaryDirectory(prefix=".edgemm-rounded-", dir=scratch) if both else None
        self._files = {name: f"{number}.safetensors" for number, name in enumerate(dict.fromkeys(both.values()))}

    def __getitem__(self, key: str) -> np.ndarray:
        name = self._places[key]
        if name != self._last:
            self._numbers = {}  # before the next ones are made
            self._numbers = self._once(name)
            self._last = name
        return self._numbers[f"{name}.{key.rpartition('.')[2]}"]

    def _once(self, name: str) -> dict[str, np.ndarray]:
        if self._folder is None or name not in self._files:
            return self._rounded(name)
        path = Path(self._folder.name) / self._files[name]
        if path.exists():
            return load_file(path)
        numbers = self._rounded(name)
        save_file(numbers, path)
        return numbers

    def _rounded(self, name: str) -> dict[str, np.ndarray]:
        with torch.no_grad():
            weight = rows_of(self._weights, name, self._layers)
            return make_layer(weight, name, self._layers[name], Prepared(), RANK)[1]

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
