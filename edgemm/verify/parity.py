"""When do two answers count as equal?  Limits and verdicts, on plain arrays and tokens.

Float graphs must agree closely.  Quantized ones have floors that catch a broken graph, not a coarse one: how much
quality a precision costs is measured by `edgemm eval`, not here.  Nothing is run here: see components.py and
loops.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save

from edgemm.bundle.bundle import Bundle, read_tensors
from edgemm.bundle.files import check_range, decode, parse
from edgemm.bundle.manifest import Manifest
from edgemm.errors import BundleError, CheckFailedError

__all__ = [
    "CodesCase",
    "Comparison",
    "DrawCase",
    "PARITY_FILE",
    "PIXELS_FILE",
    "Recorded",
    "TextCase",
    "compare_arrays",
    "compare_choices",
    "compare_pictures",
    "compare_replies",
    "compare_logits",
    "measured",
    "parity_document",
    "pixels_file",
    "precision_of",
    "read_recorded",
    "require",
    "ssim",
    "tell_structure",
]

COMPONENT_TOLERANCE = 1e-4  # of an output's largest value, float graphs: sums of thousands of terms in another order
SMALLEST_SCALE = 1e-3  # outputs below it are as good as zero
PIXEL_TOLERANCE = 1e-3  # after all steps, float graphs
ONE_CALL_TOLERANCE = 1e-4  # of the same nodes in one graph, where a library fuses more of them: seen up to 3e-5
SIGNAL_FLOOR_DB = {
    "fp16": 40.0,
    "int8": 20.0,
    "fp8": 10.0,
    "int4": 4.0,
    "nvfp4-weights": 4.0,
    "nvfp4": 4.0,
}  # of a component's outputs; SmolLM2-135M in int4 has 7, a broken graph 0
PSNR_FLOOR_DB = {
    "fp16": 40.0,
    "int8": 20.0,
    "fp8": 14.0,
    "int4": 14.0,
    "nvfp4-weights": 14.0,
    "nvfp4": 12.0,
}  # of a drawn picture; another prompt's is 8 to 12 away
CHOICE_FLOOR = {
    "fp32": 1.0,
    "fp16": 0.9,
    "int8": 0.75,
    "fp8": 0.6,
    "int4": 0.4,
    "nvfp4-weights": 0.4,
    "nvfp4": 0.15,
}  # finest first; of tokens chosen as torch did, after what torch said

WORDS = {  # measure -> (the value, the limit)
    "max_difference": ("max diff", "atol"),
    "signal_db": ("signal-to-noise dB", "at least"),
    "psnr_db": ("PSNR dB", "at least"),
    "ssim": ("SSIM", "at least"),
    "choices": ("tokens chosen alike", "at least"),
    "reply": ("tokens alike before the first that differs", "at least"),
}


def precision_of(manifest: Manifest, target: str) -> str:
    """The coarsest precision among a target's components: it decides how close the whole can come."""
    found = {manifest.variant(component, target).precision for component in manifest.targets[target]}
    return max(found, key=list(CHOICE_FLOOR).index)


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared, and the verdict."""

    what: str
    measure: str  # a row of WORDS
    value: float
    limit: float | None  # None: told, not judged
    passed: bool
    count: int | None = None  # of what `value` is a share

    def line(self) -> str:
        return f"-[{' ' if self.limit is None else '✓' if self.passed else 'x'}] {self}"

    def __str__(self) -> str:
        value, limit = WORDS[self.measure]
        told = f"{value}: {self.value:.4g}"
        if self.count is not None:
            told += f", {round(self.value * self.count)} of {self.count}"
        if self.limit is None:
            return f"{self.what}: {told} (not judged)"
        verdict = "values close" if self.passed else "values not close enough"
        return f"{self.what}: {verdict}, {told} ({limit}: {self.limit:.4g})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value if np.isfinite(self.value) else None}


def compare_arrays(what: str, precision: str, found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> Comparison:
    """Outputs of a component, the worst of them."""
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(found, wanted, strict=True)]
    sound = all(a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs)
    if precision == "fp32":
        worst = max(map(_relative_difference, *zip(*pairs, strict=True))) if sound else float("inf")
        return Comparison(what, "max_difference", worst, COMPONENT_TOLERANCE, worst <= COMPONENT_TOLERANCE)
    worst = min(map(_signal_db, *zip(*pairs, strict=True))) if sound else float("-inf")
    return Comparison(what, "signal_db", worst, SIGNAL_FLOOR_DB[precision], worst >= SIGNAL_FLOOR_DB[precision])


def _relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / max(SMALLEST_SCALE, np.abs(wanted).max()))


def _signal_db(found: np.ndarray, wanted: np.ndarray) -> float:
    return _decibel(float(np.square(wanted).mean()), float(np.square(found - wanted).mean()))


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def compare_choices(what: str, precision: str, found: Sequence[int], wanted: Sequence[int]) -> Comparison:
    """The likeliest token at each position, after torch's own tokens: one that differs does not carry on."""
    share = float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))
    return Comparison(what, "choices", share, CHOICE_FLOOR[precision], share >= CHOICE_FLOOR[precision], len(wanted))


def compare_replies(what: str, precision: str, found: Sequence[int], wanted: Sequence[int]) -> Comparison:
    """Whole replies, of any length: how long both say the same.  Judged in float only, because one near-tie decides."""
    same = 0
    for a, b in zip(found, wanted):
        if a != b:
            break
        same += 1
    longest = max(len(found), len(wanted))
    share = same / longest if longest else 1.0
    limit = 1.0 if precision == "fp32" else None
    return Comparison(what, "reply", share, limit, limit is None or share >= limit, longest)


def compare_pictures(
    what: str, precision: str, found: np.ndarray, wanted: np.ndarray, tolerance: float = PIXEL_TOLERANCE
) -> Comparison:
    """Pixels (3, H, W) in [0, 1] drawn from the same noise; `tolerance` is for float graphs."""
    sound = found.shape == wanted.shape and np.isfinite(found).all()
    if precision == "fp32":
        worst = float(np.abs(found - wanted).max()) if sound else float("inf")
        return Comparison(what, "max_difference", worst, tolerance, worst <= tolerance)
    psnr = _decibel(1.0, float(np.square(found - wanted).mean())) if sound else float("-inf")
    return Comparison(what, "psnr_db", psnr, PSNR_FLOOR_DB[precision], psnr >= PSNR_FLOOR_DB[precision])


def tell_structure(what: str, found: np.ndarray, wanted: np.ndarray) -> Comparison:
    """SSIM beside PSNR.  Not judged: on a flat ground a rounding that nobody sees takes it far below 1."""
    return Comparison(f"{what}, structure", "ssim", ssim(found, wanted), None, True)


def ssim(found: ArrayLike, wanted: ArrayLike) -> float:
    """Mean structural similarity (Wang et al. 2004) of pictures (..., H, W) in [0, 1], at least 11 pixels a side:
    Gaussian window of 11, sigma 1.5."""
    bell = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    bell /= bell.sum()

    def blurred(x: np.ndarray) -> np.ndarray:
        for axis in (-2, -1):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis) @ bell
        return x

    x, y = (np.asarray(picture, dtype=np.float64) for picture in (found, wanted))
    a, b = blurred(x), blurred(y)
    spread = blurred(x * x) - a * a + blurred(y * y) - b * b
    together = blurred(x * y) - a * b
    steady, sure = 0.01**2, 0.03**2
    value = (2 * a * b + steady) * (2 * together + sure) / ((a * a + b * b + steady) * (spread + sure))
    return float(value.mean())


def require(comparisons: Sequence[Comparison], what: str) -> None:
    """Raises CheckFailedError naming the first that failed."""
    failed = [c for c in comparisons if not c.passed]
    if failed:
        more = f" (and {len(failed) - 1} more of {len(comparisons)})" if len(failed) > 1 else ""
        raise CheckFailedError(f"{what}: {failed[0]}{more}")


# What torch said and drew, kept in the bundle, so that any machine can compare later without torch.
#
# parity.json holds what was compared at export and the prompts with torch's tokens; recorded.safetensors holds torch's
# pixels for the drawn prompts (`draw.0`), and what a target's own graphs said there (`logits.cpu`), which is closer to
# what they say elsewhere.  Nothing is run here: see loops.py.

PARITY_FILE = "parity.json"
PIXELS_FILE = "recorded.safetensors"
LOGITS = "logits."


def _check_seeds(**seeds: int | None) -> None:
    for name, seed in seeds.items():
        check_range(name, seed or 0, 0, 2**63 - 1)


@dataclass(frozen=True)
class TextCase:
    """A question, and the likeliest tokens that torch goes on with when nothing stops it."""

    prompt: str
    picture_seed: int | None  # a picture of seeded coloured blocks, or none
    tokens: tuple[int, ...]
    graph: Any = None  # of models that read graphs as rows: node-link JSON
    frames: int = 1  # of models that read motion: of a clip, whose frames have this picture's seed and the next ones

    def __post_init__(self) -> None:
        check_range("frames", self.frames, 1, 64)
        _check_seeds(picture_seed=self.picture_seed)


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
    graph: Any = None  # as above

    def __post_init__(self) -> None:
        _check_seeds(seed=self.seed, picture_seed=self.picture_seed)


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
    logits: Mapping[str, np.ndarray] = field(default_factory=dict)  # target -> (tokens, n) float32, of its own graphs


def compare_logits(what: str, found: np.ndarray, wanted: np.ndarray, limit: float) -> Comparison:
    """Logits (tokens, n) of this machine against those of the one that exported, by the same library and graphs; the
    worst token.  Sums go in another order, and inputs that are rounded to 8 bits may go to the next step.  Words that a
    model never says are -inf, here and there."""
    said = np.isfinite(wanted).all(axis=0)
    sound = found.shape == wanted.shape and np.array_equal(found[:, ~said], wanted[:, ~said])
    sound = sound and np.isfinite(found[:, said]).all()
    worst = min(map(_signal_db, found[:, said], wanted[:, said])) if sound else float("-inf")
    return Comparison(what, "signal_db", worst, limit, worst >= limit)


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


def pixels_file(recorded: Recorded) -> bytes:
    arrays = {f"draw.{row}": pixels for row, pixels in enumerate(recorded.pixels)}
    return save(arrays | {f"{LOGITS}{target}": logits for target, logits in recorded.logits.items()})


def measured(bundle: Bundle) -> list[dict[str, Any]]:
    """Rows of what was compared at export, and has a number."""
    document = parse(bundle.file(PARITY_FILE).read_bytes(), PARITY_FILE)
    rows = [row for row in document.get("comparisons", ()) if isinstance(row, dict)]
    return [row for row in rows if isinstance(row.get("value"), float)]


def read_recorded(bundle: Bundle) -> Recorded:
    """Raises BundleError when the bundle has no such record, or a malformed one."""
    document = parse(bundle.file(PARITY_FILE).read_bytes(), PARITY_FILE)
    pixels = read_tensors(bundle.file(PIXELS_FILE))
    precision = document.get("precision")
    if precision not in tuple(CHOICE_FLOOR):  # it may be an object, which is in no dictionary
        raise BundleError(f"{PARITY_FILE}: precision is {precision!r}, expected one of: {', '.join(CHOICE_FLOOR)}")
    texts = decode(tuple[TextCase, ...], document.get("text_cases"), f"{PARITY_FILE}: text_cases")
    if not all(case.tokens for case in texts):
        raise BundleError(f"{PARITY_FILE}: text_cases: one without tokens, expected those of a reply")
    draws = decode(tuple[DrawCase, ...], document.get("draw_cases"), f"{PARITY_FILE}: draw_cases")
    codes = decode(tuple[CodesCase, ...], document.get("code_cases", []), f"{PARITY_FILE}: code_cases")
    try:
        drawn = tuple(pixels[f"draw.{row}"] for row in range(len(draws)))
    except KeyError as error:
        raise BundleError(f"{PIXELS_FILE}: {error} is missing") from error
    logits = {name.removeprefix(LOGITS): array for name, array in pixels.items() if name.startswith(LOGITS)}
    if odd := [target for target, array in logits.items() if array.ndim != 2]:
        raise BundleError(f"{PIXELS_FILE}: {LOGITS}{odd[0]} has {logits[odd[0]].ndim} axes, expected 2")
    return Recorded(precision, texts, draws, drawn, codes, logits=logits)
