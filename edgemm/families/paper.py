"""Sizes of a model on paper, foreign or edgemm's own: parameters, bundle bytes, K/V bytes, from config.json alone.

No weight is read and none is allocated (meta device).  Used by `edgemm export` before it starts, and by
`edgemm inspect FOLDER --estimate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError
from edgemm.families.family import Pieces, without_copies
from edgemm.families.folder import GGUF, Found
from edgemm.families.hf_checkpoint import skeleton
from edgemm.families.table import load_family

__all__ = ["Paper", "as_json", "describe", "measure", "measure_own"]

PRECISIONS = ("fp32", "fp16", "int8", "int4")  # fp16 is NVIDIA's alone
REAL = {"fp32": 32.0, "fp16": 16.0}  # bits of every number
WRITES = ("transformer", "text_head", "image_head")  # what int4 has in 4 bits
EIGHT, FOUR = 8.5, 6.1  # bits: blocks carry a 16-bit scale, 4 bits also a zero-point, and two fifths of them keep 8
FOUR_READ = 6.9  # the same where drawing reads keys and values: the lower half of the layers keeps 8
FILTERS = 16.0  # bits of what is no product, where products are rounded
CHOOSES = "vq_encoder"  # its ids would be others: it stays in float32


@dataclass(frozen=True)
class Paper:
    name: str
    architecture: str
    family: str
    cannot: str
    parameters: int  # of the whole checkpoint, shared ones once
    components: dict[str, int]  # component -> parameters, where several use them the first one's alone
    kv_numbers: int  # a token
    filters: Mapping[str, int] = field(default_factory=dict)  # component -> those of convolutions, norms and biases
    again: Mapping[str, int] = field(default_factory=dict)  # component -> parameters that one before it stores

    def bundle_bytes(self, precision: str) -> int:
        return sum(self.component_bytes(name, precision) for name in self.components)

    def component_bytes(self, name: str, precision: str) -> int:
        count, filters = self.components[name], self.filters.get(name, 0)
        if precision in REAL or name == CHOOSES:
            return int(count * REAL.get(precision, 32.0) / 8)
        bits = self._four if precision == "int4" and name in WRITES else EIGHT
        return int(((count - filters) * bits + filters * FILTERS) / 8)

    @property
    def _four(self) -> float:
        return FOUR_READ if "denoiser" in self.components else FOUR

    def memory_bytes(self, name: str, precision: str) -> int:
        """Of its weights while it runs: an engine has its own copy of those that another component stores, too."""
        bits = REAL.get(precision, self._four if precision == "int4" else EIGHT)
        return self.component_bytes(name, precision) + int(self.again.get(name, 0) * bits / 8)

    def kv_bytes(self, tokens: int = 1, bytes_each: int = 4) -> int:
        return self.kv_numbers * bytes_each * tokens


def measure(found: Found) -> Paper:
    family = load_family(found)
    model = skeleton(found, family)
    with reading(found.folder, "its config.json does not describe such a model", CheckpointError):
        pieces = family.pieces(model)
        own = dict(_stored_once(pieces))
        text = model.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return Paper(
            name=found.folder.resolve().name.removesuffix(GGUF),
            architecture=found.architecture,
            family=family.__name__.rpartition(".")[2],
            cannot=family.CANNOT,
            parameters=without_copies([model]),
            components={name: without_copies(parts) for name, parts in own.items()},
            filters={name: without_copies(_no_products(parts)) for name, parts in own.items()},
            again={name: without_copies(parts) - without_copies(own[name]) for name, parts in pieces.items()},
            kv_numbers=2 * text.num_hidden_layers * heads * head,
        )


def _stored_once(pieces: Pieces) -> Iterator[tuple[str, list[Tensor]]]:
    """Component -> the parameters that no component before it uses."""
    seen: set[int] = set()
    for name, parts in pieces.items():
        new = {id(x): x for x in _parameters(parts) if id(x) not in seen}
        seen |= new.keys()
        yield name, list(new.values())


def _parameters(pieces: Sequence[Any]) -> Iterator[Tensor]:
    for part in pieces:
        yield from part.parameters() if hasattr(part, "parameters") else [part]


def _no_products(pieces: Sequence[Any]) -> list[Any]:
    """Parameters that are no matrix."""
    return [tensor for tensor in _parameters(pieces) if tensor.ndim != 2]


def measure_own(folder: Path) -> Paper:
    """Of a checkpoint of edgemm's, whose config.json may be written by hand for a model that nobody has trained."""
    import torch

    from edgemm.model.config import ModelConfig
    from edgemm.model.prompts import byte_tokenizer_json
    from edgemm.model.unified import Unified

    config = ModelConfig.read(folder / "config.json")
    with torch.device("meta"):
        model = Unified(config, byte_tokenizer_json())
    parts = {name: getattr(model, name, None) for name in ("image_encoder", "transformer", "conditioner", "denoiser")}
    parts |= {"vq_decoder": model.vq, "image_decoder": model.autoencoder}
    text = config.transformer
    return Paper(
        name=config.name,
        architecture=f"experts {config.experts}, objective {config.objective}",
        family=config.family,
        cannot="nothing",
        parameters=without_copies([model]),
        components={name: without_copies([part]) for name, part in parts.items() if part is not None},
        kv_numbers=2 * text.depth * text.kv_heads * text.head_width,
    )


def describe(paper: Paper) -> Iterator[str]:
    yield f"{paper.name}: {paper.architecture}, family {paper.family}, {_count(paper.parameters)} parameters"
    for name, count in paper.components.items():
        yield f"  {name:<16}{_count(count):>10}"
    sizes = ", ".join(f"{precision} {_bytes(paper.bundle_bytes(precision))}" for precision in PRECISIONS)
    yield f"bundle, estimated: {sizes}"
    yield f"keys and values: {_bytes(paper.kv_bytes())} a token, {_bytes(paper.kv_bytes(2048))} for 2048"
    yield f"leaves out: {paper.cannot}"


def as_json(paper: Paper) -> dict[str, Any]:
    return {
        "name": paper.name,
        "architecture": paper.architecture,
        "family": paper.family,
        "parameters": paper.parameters,
        "components": paper.components,
        "bundle_bytes": {precision: paper.bundle_bytes(precision) for precision in PRECISIONS},
        "kv_bytes_per_token": paper.kv_bytes(),
        "estimated": True,
    }


def _count(numbers: float) -> str:
    return f"{numbers / 1e6:.1f}M" if numbers >= 1e6 else f"{numbers / 1e3:.1f}K"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
