"""Sizes of a model on paper, foreign or edgemm's own: parameters, bundle bytes, K/V bytes, from config.json alone.

No weight is read and none is allocated (meta device).  Used by `edgemm export` before it starts, and by
`edgemm inspect FOLDER --estimate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError
from edgemm.families.family import without_copies
from edgemm.families.folder import GGUF, Found
from edgemm.families.hf_checkpoint import skeleton
from edgemm.families.table import load_family

__all__ = ["Paper", "as_json", "describe", "measure", "measure_own"]

BITS = {
    "fp32": 32.0,
    "int8": 8.5,
    "int4": 6.1,
}  # a weight: blocks carry a 16-bit scale, 4 bits also a zero-point, and two fifths keep 8 bits
ALWAYS_FLOAT = ("image_encoder", "image_embedder", "vq_encoder", "vq_decoder")  # as export/specs.py leaves them
PRECISIONS = tuple(BITS)


@dataclass(frozen=True)
class Paper:
    name: str
    architecture: str
    family: str
    cannot: str
    parameters: int  # of the whole checkpoint, shared ones once
    components: dict[str, int]  # component -> parameters
    kv_numbers: int  # a token

    def bundle_bytes(self, precision: str) -> int:
        return sum(
            int(count * (BITS["fp32"] if name in ALWAYS_FLOAT else BITS[precision]) / 8)
            for name, count in self.components.items()
        )

    def kv_bytes(self, tokens: int = 1, bytes_each: int = 4) -> int:
        return self.kv_numbers * bytes_each * tokens


def measure(found: Found) -> Paper:
    family = load_family(found)
    model = skeleton(found, family)
    with reading(found.folder, "its config.json does not describe such a model", CheckpointError):
        text = model.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return Paper(
            name=found.folder.resolve().name.removesuffix(GGUF),
            architecture=found.architecture,
            family=family.__name__.rpartition(".")[2],
            cannot=family.CANNOT,
            parameters=without_copies([model]),
            components={name: without_copies(pieces) for name, pieces in family.pieces(model).items()},
            kv_numbers=2 * text.num_hidden_layers * heads * head,
        )


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
