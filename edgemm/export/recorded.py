"""What torch said and drew, kept in the bundle, so that any machine can compare later without torch.

parity.json holds what was compared at export and the prompts with torch's tokens; recorded.safetensors holds torch's
pixels for the drawn prompts.  Needs the thin runtime only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.bundle import Bundle
from edgemm.errors import BundleError
from edgemm.runtimes.model import Model
from edgemm.runtimes.tensor_file import read_tensors

__all__ = ["PARITY_FILE", "PIXELS_FILE", "DrawCase", "TextCase", "draw_pixels", "reply_tokens", "recorded_cases"]

PARITY_FILE = "parity.json"
PIXELS_FILE = "recorded.safetensors"


@dataclass(frozen=True)
class TextCase:
    """A greedy reply."""

    prompt: str
    picture_seed: int | None  # a picture of seeded smooth noise, or none
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class DrawCase:
    """A drawing with the bundle's own defaults but for the steps."""

    prompt: str
    seed: int
    steps: int


def seeded_picture(seed: int, size: int) -> np.ndarray:
    """uint8 (size, size, 3): coloured blocks, the same on every machine."""
    blocks = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((size // 4, size // 4, 1), dtype=np.uint8))


def reply_tokens(model: Model, case: TextCase, count: int) -> tuple[int, ...]:
    loop = model.manifest.loops.text
    assert loop is not None
    images = [] if case.picture_seed is None else [seeded_picture(case.picture_seed, loop.image_size)]
    return model.generate_text(case.prompt, images=images, max_new_tokens=count).token_ids


def draw_pixels(model: Model, case: DrawCase) -> np.ndarray:
    return model.generate_image(case.prompt, num_inference_steps=case.steps, seed=case.seed).pixels


def recorded_cases(bundle: Bundle) -> tuple[int, list[TextCase], list[tuple[DrawCase, np.ndarray]], dict[str, Any]]:
    """Tokens a text case was allowed, the cases with torch's answers, and the whole document."""
    document = json.loads(bundle.file(PARITY_FILE).read_text(encoding="utf-8"))
    pixels = read_tensors(bundle.file(PIXELS_FILE))
    try:
        texts = [TextCase(c["prompt"], c["picture_seed"], tuple(c["tokens"])) for c in document["text_cases"]]
        draws = [
            (DrawCase(c["prompt"], c["seed"], c["steps"]), pixels[f"draw.{row}"])
            for row, c in enumerate(document["draw_cases"])
        ]
        return int(document["max_new_tokens"]), texts, draws, document
    except (KeyError, TypeError) as error:
        raise BundleError(f"{PARITY_FILE}: {error} is missing or malformed") from error


def to_json(texts: Sequence[TextCase], draws: Sequence[DrawCase], max_new_tokens: int) -> dict[str, Any]:
    return {
        "max_new_tokens": max_new_tokens,
        "text_cases": [{"prompt": c.prompt, "picture_seed": c.picture_seed, "tokens": list(c.tokens)} for c in texts],
        "draw_cases": [{"prompt": c.prompt, "seed": c.seed, "steps": c.steps} for c in draws],
    }
