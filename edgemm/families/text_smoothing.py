"""Text models as Llama is one, smoothed by shipped text before they are rounded; and what then bears 8 bits of inputs.

SmoothQuant (arXiv:2211.10438) moves what makes inputs hard to round out of norms' weights into queries, keys, values,
gate and up.  Factors are powers of two: the float model computes the same bits as before.  Then the text is read once
more, and every product is asked what 8 bits of its inputs cost (docs/notes/cpu-speed.md).  Down-projections read what
no norm makes: those that bear 8 bits take them, the few others keep two terms.
Nothing is smoothed that another component uses, or that stands in a model that draws.
Axes: b pieces, s tokens, m image tokens, k input channels, w width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.bundle.manifest import TextLoop
from edgemm.export.component_graphs import ComponentGraph
from edgemm.families.family import Parts
from edgemm.families.llama import LlamaGraph
from edgemm.model.kept_weights import place_of
from edgemm.quantize.calibration import shipped_text
from edgemm.quantize.simulated import rounded
from edgemm.quantize.smoothing import Site, fold, sites, smoothquant_factors

__all__ = ["Smoothed", "smooth_by_text"]

PIECES, PIECE = 4, 128  # pieces, and tokens in each
FEWEST = 16  # tokens of text, for a vocabulary that hardly spells it
PICTURED = 256  # image tokens that are read before a piece
STRENGTH = 0.7  # half as in smoothing.py leaves more in the inputs than they bear here
LARGEST = 1_000_000_000  # numbers in products: reading twice takes a minute or two then
SAME = 1e-5  # of the largest: folding underflows nowhere
LOUD = 1e-3  # of a product's own energy, what 8 bits of its inputs may add
ALL_LOUD = 1e-3  # of the residual stream's, what all down-projections of 8 bits may add to it together


@dataclass(frozen=True, eq=False)
class Smoothed:
    """What was done to a transformer."""

    one_term: frozenset[str] = frozenset()  # layers whose inputs bear 8 bits now, as specs name them
    undo: Callable[[], None] = lambda: None  # bit for bit


def smooth_by_text(parts: Parts, tokenizer: Any) -> Smoothed:
    """Folds factors into the transformer itself, which computes the same; nothing where that is not certain."""
    graph = parts.graphs.get("transformer")
    if graph is None or parts.text is None or not _is_certain(parts, graph.module):
        return Smoothed()
    module = graph.module
    assert isinstance(module, LlamaGraph)
    places = _own_sites(parts, module)
    readings = _readings(parts, graph, tokenizer)
    if not places or not readings:
        return Smoothed()
    progress.status("reading to smooth")
    before, seen = [], _Seen()
    with _watching(module, seen.largest_of):
        before = [reading.run(module) for reading in readings]
    factors = {
        name: _powers_of_two(module, site, seen.largest[site.readers[0]])
        for name, site in places.items()
        if site.readers[0] in seen.largest
    }
    factors = {name: found for name, found in factors.items() if bool(torch.isfinite(found).all())}
    for name, found in factors.items():
        fold(module, places[name], found)
    with _watching(module, seen.noise_of):
        after = [reading.run(module, seen.stream_of) for reading in readings]
    if not all(_same(a, b) for a, b in zip(before, after, strict=True)):
        _unfold(module, places, factors)
        return Smoothed()
    bear = {
        name: found
        for name, found in factors.items()
        if max(seen.share(reader) for reader in places[name].readers) <= LOUD
    }
    _unfold(module, places, {name: found for name, found in factors.items() if name not in bear})
    one_term = [*(reader for name in bear for reader in places[name].readers), *seen.quiet_downs()]
    return Smoothed(frozenset(f"{graph.name}.{name}" for name in one_term), lambda: _unfold(module, places, bear))


def _is_certain(parts: Parts, module: nn.Module) -> bool:
    """Only text says what its inputs are like, and LlamaGraph's own code reads it."""
    own = all(
        getattr(type(module), name, None) is getattr(LlamaGraph, name) for name in ("forward", "read", "run_layer")
    )
    if not own or not isinstance(module, LlamaGraph) or parts.denoise is not None or parts.image_tokens is not None:
        return False
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)) <= LARGEST


def _own_sites(parts: Parts, module: nn.Module) -> dict[str, Site]:
    """Norms whose weights, and whose readers' weights, nobody else has."""
    users = Counter(
        place_of(parameter)
        for graph in parts.graphs.values()
        for _, parameter in graph.module.named_parameters(remove_duplicate=False)
    )

    def alone(name: str) -> bool:
        weight = module.get_submodule(name).weight
        return isinstance(weight, Tensor) and users[place_of(weight)] == 1

    def scales(norm: nn.Module) -> bool:
        plain = getattr(norm, "weight", None) is not None and getattr(norm, "bias", None) is None
        return plain and hasattr(norm, "variance_epsilon")  # as llama.rms reads it

    return {
        name: site
        for name, site in sites(module).items()
        if scales(module.get_submodule(site.maker))
        and all(isinstance(module.get_submodule(reader), nn.Linear) for reader in site.readers)
        and all(alone(part) for part in (site.maker, *site.readers))
    }


@dataclass(frozen=True, eq=False)
class _Reading:
    """Pieces that are read together."""

    ids: Tensor  # (b, s)
    image_tokens: Tensor  # (b, m, w)
    image_index: Tensor  # (b, s)
    cache: tuple[tuple[int, int], ...]  # heads and their width, of every layer's keys and values

    def run(self, graph: LlamaGraph, behind: Any = None) -> Tensor:
        """Hidden states behind all layers (b, s, w)."""
        b, s = self.ids.shape
        places = torch.arange(s).expand(b, -1)
        past = [torch.zeros(b, heads, s, width) for heads, width in self.cache]
        rows = graph.placed(places, places, past)
        x = graph.look_up(self.ids, self.image_tokens, self.image_index)
        more = {} if behind is None else {"behind": behind}
        return graph.read(x, rows, torch.zeros(b, dtype=torch.long), past, **more)[0]


def _readings(parts: Parts, graph: ComponentGraph, tokenizer: Any) -> list[_Reading]:
    """The shipped text as a user would say it, and where the model sees, a picture before it."""
    assert isinstance(graph.module, LlamaGraph) and parts.text is not None
    words = graph.module.embed_tokens.num_embeddings

    def tokens(text: str) -> list[int]:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [token for token in found if 0 <= token < words]

    opening, text = tokens(_opening(parts.text))[: PIECE // 2], tokens(shipped_text("calibration.txt"))
    size = PIECE - len(opening)
    pieces = [text[start : start + size] for start in range(0, len(text) - size + 1, size)][:PIECES]
    pieces = pieces or ([text] if len(text) >= FEWEST else [])
    if not pieces:
        return []
    shapes = {spec.name: spec.shape for spec in graph.inputs}
    cache = tuple((int(shape[1]), int(shape[3])) for name, shape in shapes.items() if name.startswith("past_"))
    ids = torch.tensor([opening + piece for piece in pieces])
    none = torch.zeros(len(ids), 1, int(shapes["image_tokens"][2]))
    readings = [_Reading(ids, none, torch.full_like(ids, -1), cache)]
    example = parts.inputs[graph.name]
    if bool((example["image_index"] >= 0).any()):
        pictures = example["image_tokens"][:1]
        rows = torch.arange(min(pictures.shape[1], PICTURED))
        seen = torch.cat([torch.full((len(opening),), -1), rows, torch.full((len(pieces[0]),), -1)])
        words_of = torch.tensor([*opening, *[pieces[0][0]] * len(rows), *pieces[0]])
        readings.append(_Reading(words_of[None], pictures, seen[None], cache))
    return readings


def _opening(loop: TextLoop) -> str:
    """What stands before a user's first words."""
    template = loop.template
    system = f"{template.system_open}{template.system_default}{template.system_close}"
    return (system if template.system_default else template.opening) + template.user_open


def _powers_of_two(module: nn.Module, site: Site, largest: Tensor) -> Tensor:
    weights: list[Any] = [module.get_submodule(reader).weight for reader in site.readers]
    return torch.exp2(smoothquant_factors(weights, largest, STRENGTH).log2().round())


def _unfold(module: nn.Module, places: Mapping[str, Site], factors: Mapping[str, Tensor]) -> None:
    for name, found in factors.items():
        fold(module, places[name], 1 / found)


def _same(before: Tensor, after: Tensor) -> bool:
    return bool((before - after).abs().max() <= SAME * before.abs().max())


@dataclass(eq=False)
class _Seen:
    """Of every product that counts, by its name in the module; energies are means over tokens."""

    largest: dict[str, Tensor] = field(default_factory=dict)  # inputs (k)
    said: dict[str, float] = field(default_factory=dict)  # energy of what it gives
    noise: dict[str, float] = field(default_factory=dict)  # of what 8 bits of its inputs change in that
    stream: dict[int, float] = field(default_factory=dict)  # layer -> of the residual stream behind it, of most tokens

    def largest_of(self, name: str, part: nn.Linear, x: Tensor) -> None:
        found = x.abs().flatten(0, -2).amax(0)
        self.largest[name] = torch.maximum(self.largest[name], found) if name in self.largest else found

    def noise_of(self, name: str, part: nn.Linear, x: Tensor) -> None:
        """The worst of all readings."""
        difference = (rounded(x, "token") - x) @ part.weight.T
        self.noise[name] = max(self.noise.get(name, 0.0), _energy(difference))
        self.said[name] = min(self.said.get(name, float("inf")), _energy(x @ part.weight.T))

    def stream_of(self, layer: int, x: Tensor) -> Tensor:
        """The median: a few tokens' are thousands of times the others' (arXiv:2402.17762)."""
        found = float(x.square().sum(-1).median())
        self.stream[layer] = min(self.stream.get(layer, float("inf")), found)
        return x

    def share(self, name: str) -> float:
        return self.noise[name] / max(self.said[name], 1e-30)

    def quiet_downs(self) -> list[str]:
        """As many as may be, the quietest first."""
        shares = {
            name: noise / max(self.stream[int(name.split(".")[1])], 1e-30)
            for name, noise in self.noise.items()
            if name.endswith(".mlp.down_proj")
        }
        found, total = [], 0.0
        for name, share in sorted(shares.items(), key=lambda pair: pair[1]):
            total += share
            if not total <= ALL_LOUD:
                break
            found.append(name)
        return found


def _energy(rows: Tensor) -> float:
    return float(rows.square().sum(-1).mean())


@contextmanager
def _watching(module: nn.Module, see: Any) -> Iterator[None]:
    """All products of layers see what goes into them, but output projections, which bear 8 bits."""
    hooks = [
        part.register_forward_pre_hook(lambda part, args, name=name: see(name, part, args[0]))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("layers.") and not name.endswith(".o_proj")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
