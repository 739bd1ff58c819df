"""How each target's weights are quantized: by the caller's spec, or by what `--precision int8|fp8|...` means there.

Models whose transformer is edgemm's own are calibrated where their scheme asks for data; of all others the weights are
enough.  What of them a family has smoothed, and what then bears 8 bits of inputs, it tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from edgemm.bundle.components import COMPONENTS
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.schemes import Scheme
from edgemm.model.kept_weights import place_of
from edgemm.model.unified import Unified
from edgemm.quantize.layers import IN_BLOCKS, TEXT
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import weights_of
from edgemm.quantize.spec import Spec
from edgemm.quantize.without_data import quantize_without_data

__all__ = ["bytes_per_weight", "graph_weights", "make_specs", "make_specs_of_graphs"]

WITHOUT_DATA = ("vq", "connector")  # families whose calibration nobody has written
NO_SHARES: Mapping[str, str] = MappingProxyType({})
TOGETHER = {"int8": {"text": "w8a8"}, "int4": {"draw": "w4a8"}}  # one form for reading and drawing, where both share


def make_specs(
    model: Unified, schemes: Sequence[Scheme], cache: str = "float", checkpoint: tuple[str, str] = ("", "")
) -> dict[str, Spec]:
    """target -> spec, for the targets that are quantized; those that ask for the same share it.

    Smoothing is folded into `model` itself, which computes the same as before; what that changes for adapters is told
    by adapter_points.py.  `cache` is that of keys and values on a CPU, `checkpoint` the model's name and hash.
    """
    depth = max(model.config.denoiser.prefix_layers, default=-1) + 1  # of the layers that drawing reads
    made: dict[QuantizeOptions, Spec] = {}
    found = {}
    for scheme in sorted(schemes, key=lambda scheme: not scheme.on_cpu):  # what is folded, the later ones see
        if scheme.quantize is None:
            continue
        options = replace(scheme.quantize, cache=cache) if scheme.on_cpu else scheme.quantize
        if not depth and options.text in IN_BLOCKS:
            options = replace(options, text=IN_BLOCKS[options.text], method="")
        if (
            made and options not in made and scheme.on_cpu
        ):  # smoothing once more would change what the first one rounded
            options = replace(options, method="")
        if options not in made:
            if scheme.on_cpu and model.config.family in WITHOUT_DATA and cache == "float":
                made[options] = quantize_without_data(weights_of(model), options, depth)
            else:
                made[options] = quantize(model, options, checkpoint)
        found[scheme.target] = made[options]
    return found


def make_specs_of_graphs(
    graphs: Mapping[str, ComponentGraph],
    schemes: Sequence[Scheme],
    shared: Mapping[str, str] = NO_SHARES,  # component -> the one whose weights it uses, too
    drawing_depth: int = 0,  # layers below it are read at every step of drawing
    scratch: Path | None = None,  # a folder for what is rounded and waits to be read again
    one_term: Collection[str] = (),  # layers that were seen to bear 8 bits of inputs, where a scale covers a token
    calibration: str = "",  # what they were seen to read
) -> dict[str, Spec]:
    """The same of any family's components.  What two of them share gets the same numbers, so it is rounded and stored
    once; targets that ask for the same share a spec."""
    weights = graph_weights(graphs)
    twins = _twins(weights, shared)
    own = {name: weight for name, weight in weights.items() if name not in twins}
    found, made = {}, dict[QuantizeOptions, Spec]()
    for scheme in schemes:
        if scheme.quantize:
            asked = replace(scheme.quantize, text=IN_BLOCKS.get(scheme.quantize.text, scheme.quantize.text))
            if twins and asked.draw != "fp16":
                asked = replace(asked, **TOGETHER.get(asked.text, {}))
            if asked not in made:
                seen = (one_term, calibration) if scheme.smooths_text else ((), "")
                made[asked] = quantize_without_data(own, asked, drawing_depth, twins, True, scratch, *seen)
            found[scheme.target] = made[asked]
    return found


def _twins(weights: Mapping[str, Tensor], shared: Mapping[str, str]) -> dict[str, str]:
    """Layer of a component that uses another one's weights -> that one's layer, where they are the same memory."""
    first = {place_of(weight): name for name, weight in weights.items() if name.partition(".")[0] in shared.values()}
    users = {name: weight for name, weight in weights.items() if name.partition(".")[0] in shared}
    return {name: first[place_of(weight)] for name, weight in users.items() if place_of(weight) in first}


def graph_weights(graphs: Mapping[str, ComponentGraph]) -> dict[str, Tensor]:
    """Layer -> its weight (n, k), by the names that products.py finds in the traced graphs."""
    found = {}
    for component, graph in graphs.items():
        for name, weight in weights_of(graph.module).items():
            if not _multiplies(graph.module.get_submodule(name), name):
                continue
            found[name if name.partition(".")[0] in COMPONENTS else f"{component}.{name}"] = weight
    return found


def _multiplies(part: nn.Module, name: str) -> bool:
    """Filters, and tables that are looked up and nothing else, are no products."""
    return isinstance(part, nn.Linear) or name.endswith("embed_tokens")


def bytes_per_weight(scheme: Scheme) -> float:
    """Of most weights: the least that a bundle of it takes."""
    if scheme.quantize is None:
        return {"fp32": 4.0, "fp16": 2.0}[scheme.real]
    return (TEXT[scheme.quantize.text].layer.bits or 16) / 8
