"""What torch said and drew, kept in the bundle, so that any machine can compare later without torch.

parity.json holds what was compared at export and the prompts with torch's tokens; recorded.safetensors holds torch's
pixels for the drawn prompts.  Nothing is run here: see loops.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from edgemm.bundle.bundle import Bundle, read_tensors
from edgemm.bundle.files import decode, parse
from edgemm.errors import BundleError
from edgemm.verify.parity import CHOICE_FLOOR, Comparison

__all__ = [
    "PARITY_FILE",
    "PIXELS_FILE",
    "CodesCase",
    "DrawCase",
    "Recorded",
    "TextCase",
    "parity_document",
    "read_recorded",
]

PARITY_FILE = "parity.json"
PIXELS_FILE = "recorded.safetensors"


@dataclass(frozen=True)
class TextCase:
    """A question, and the likeliest tokens that torch goes on with when nothing stops it."""

    prompt: str
    picture_seed: int | None  # a picture of seeded coloured blocks, or none
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class DrawCase:
    """A drawing; guidance is named, so that the unconditional half is compared whatever the model's default."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    picture_seed: int | None = None  # of models that edit: drawn from a picture of seeded coloured blocks
    height: int | None = None  # of models that draw several sizes, in pixels
    width: int | None = None


@dataclass(frozen=True)
class CodesCase:
    """A drawing token by token, and the likeliest codes that the library begins it with."""

    prompt: str
    guidance: float
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Recorded:
    precision: str  # decides how close is close
    texts: tuple[TextCase, ...]
    draws: tuple[DrawCase, ...]
    pixels: tuple[np.ndarray, ...]  # (3, H, W) float32, one a drawing
    codes: tuple[CodesCase, ...] = ()
    compared_with: str = ""  # who said and drew it


def parity_document(recorded: Recorded, comparisons: Sequence[Comparison]) -> str:
    document = {
        "precision": recorded.precision,
        **({"compared_with": recorded.compared_with} if recorded.compared_with else {}),
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "text_cases": [asdict(case) for case in recorded.texts],
        "draw_cases": [asdict(case) for case in recorded.draws],
        "code_cases": [asdict(case) for case in recorded.codes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_recorded(bundle: Bundle) -> Recorded:
    """Raises BundleError when the bundle has no such record, or a malformed one."""
    document = parse(bundle.file(PARITY_FILE).read_bytes(), PARITY_FILE)
    pixels = read_tensors(bundle.file(PIXELS_FILE))
    precision = document.get("precision")
    if precision not in CHOICE_FLOOR:
        raise BundleError(f"{PARITY_FILE}: precision is {precision!r}, expected one of: {', '.join(CHOICE_FLOOR)}")
    texts = decode(tuple[TextCase, ...], document.get("text_cases"), f"{PARITY_FILE}: text_cases")
    draws = decode(tuple[DrawCase, ...], document.get("draw_cases"), f"{PARITY_FILE}: draw_cases")
    codes = decode(tuple[CodesCase, ...], document.get("code_cases", []), f"{PARITY_FILE}: code_cases")
    try:
        drawn = tuple(pixels[f"draw.{row}"] for row in range(len(draws)))
    except KeyError as error:
        raise BundleError(f"{PIXELS_FILE}: {error} is missing") from error
    return Recorded(precision, texts, draws, drawn, codes)
