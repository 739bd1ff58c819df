"""The loop that draws a picture token after token, row by row, with guidance, and then decodes their codes.

Every picture has two rows in the transformer's batch, the prompt and the unconditional one, and both read the token
that their guided logits gave.  It knows codes and token ids, never strings, files or devices; see prompt.py.
Axes: b batch (pictures' prompts, then their unconditional rows), n codes of a picture, v what can be said at a place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgemm.bundle.loops import SIDE_BY_SIDE, ImageTokensLoop
from edgemm.bundle.prompt import Prompt
from edgemm.runtimes.backend.engine import Engine, check_finite
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.results import DenoiseProgress, ImageMetrics, ImageResult, Picture
from edgemm.runtimes.sampling import Sampling, next_token

__all__ = ["CodesClock", "CodesEngines", "CodesRequest", "draw_codes", "guide", "write_codes"]

BLOCK = 64  # slots a cache grows by


@dataclass(frozen=True, eq=False)
class CodesRequest:
    """A prompt and how it is to be drawn; checked by draw.py."""

    prompt: Prompt
    unconditional: Prompt | None  # None: no guidance
    guidance_scale: float
    sampling: Sampling
    seeds: tuple[int, ...]  # one a picture


@dataclass(frozen=True)
class CodesEngines:
    transformer: Engine
    vq_decoder: Engine
    image_head: Engine | None  # both or none
    image_embedder: Engine | None
    code_ids: np.ndarray | None  # (codes) token id of each code; None where image_head knows codes alone
    max_context: int


@dataclass
class CodesClock:
    """What a call took so far; seconds."""

    began: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0
    prefill_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    decode_s: float = 0.0

    def metrics(self, prompt_tokens: int) -> ImageMetrics:
        return ImageMetrics(
            prompt_tokens=prompt_tokens,
            prefill_ms=1e3 * self.prefill_s,
            conditioner_ms=0.0,
            steps=len(self.steps_s),
            step_ms=1e3 * sum(self.steps_s) / max(len(self.steps_s), 1),
            decode_ms=1e3 * self.decode_s,
            load_ms=1e3 * self.load_s,
            total_ms=1e3 * (time.perf_counter() - self.began - self.load_s),
        )


def draw_codes(
    request: CodesRequest,
    loop: ImageTokensLoop,
    engines: CodesEngines,
    cancelled: Callable[[], bool],
    clock: CodesClock,
) -> Iterator[DenoiseProgress | ImageResult]:
    """Progress after every code, then one ImageResult with every picture; one that was cancelled is left out."""
    pictures: list[Picture] = []
    count = loop.rows * loop.columns
    for first in range(0, len(request.seeds), SIDE_BY_SIDE):
        seeds = request.seeds[first : first + SIDE_BY_SIDE]
        codes: list[np.ndarray] = []  # n of (pictures)
        for chosen in write_codes(request, seeds, loop, engines, cancelled, clock):
            codes.append(chosen)
            yield DenoiseProgress(len(codes), count, len(codes) / count, first)
        if len(codes) < count:
            break
        for seed, picture in zip(seeds, np.stack(codes, axis=1)):
            pictures.append(Picture(_decode(picture, loop, engines.vq_decoder, clock), seed))
    finished = len(pictures) == len(request.seeds)
    yield ImageResult(tuple(pictures), "stop" if finished else "cancelled", clock.metrics(len(request.prompt)))


def write_codes(
    request: CodesRequest,
    seeds: tuple[int, ...],
    loop: ImageTokensLoop,
    engines: CodesEngines,
    cancelled: Callable[[], bool],
    clock: CodesClock,
    told: Sequence[int] = (),
) -> Iterator[np.ndarray]:
    """The next code of every picture (pictures), again and again; ends early when it is cancelled.

    Where codes are `told`, for comparison, it says what it would have chosen and goes on with those.
    """
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    prompts = [request.prompt] * len(seeds)
    if request.unconditional is not None:
        prompts += [request.unconditional] * len(seeds)
    transformer = CachedTransformer(
        engines.transformer, engines.max_context, BLOCK, engines.image_head, rows=len(prompts)
    )
    embed = _Embedder(engines.image_embedder, len(prompts))
    longest = max(map(len, prompts))
    if cancelled():
        return
    start = time.perf_counter()
    logits = transformer.prefill_rows(prompts, slots=longest + loop.length)
    clock.prefill_s += time.perf_counter() - start
    chosen = np.zeros(len(seeds), dtype=np.int64)
    for place in range(loop.rows * loop.columns):
        start = time.perf_counter()
        if place:
            logits = _read(transformer, embed, chosen, place, loop, engines.code_ids)
        scores = _scores(logits, request, loop, engines.code_ids)
        chosen = np.array([next_token(row, (), request.sampling, g) for row, g in zip(scores, generators)])
        clock.steps_s.append(time.perf_counter() - start)
        yield chosen
        chosen = np.full_like(chosen, told[place]) if place < len(told) else chosen
        if cancelled():
            return


def _read(
    transformer: CachedTransformer,
    embed: _Embedder,
    codes: np.ndarray,
    place: int,
    loop: ImageTokensLoop,
    code_ids: np.ndarray | None,
) -> np.ndarray:
    """Lets every row read the codes chosen last, and the row's end where one is due; logits (b, v) of the next."""
    both = np.resize(codes, transformer.lengths.shape)  # the unconditional rows read the same
    if code_ids is None:
        logits = transformer.step_rows(image_tokens=embed(both))
    else:
        logits = transformer.step_rows(code_ids[both])
    if loop.row_end is not None and place % loop.columns == 0:
        logits = transformer.step_rows(np.full(len(both), loop.row_end))
    return logits


def _scores(
    logits: np.ndarray, request: CodesRequest, loop: ImageTokensLoop, code_ids: np.ndarray | None
) -> np.ndarray:
    """Guided scores (pictures, codes)."""
    if request.unconditional is not None:
        conditional, unconditional = np.split(logits, 2)
        logits = guide(conditional, unconditional, request.guidance_scale, loop.guidance)
    return logits if code_ids is None else logits[:, code_ids]


def guide(conditional: np.ndarray, unconditional: np.ndarray, scale: float, of: str) -> np.ndarray:
    """Classifier-free guidance (arXiv:2207.12598) on logits, or log-probabilities of all tokens (arXiv:2306.17806)."""
    if of == "log_probabilities":
        conditional, unconditional = _log_softmax(conditional), _log_softmax(unconditional)
    return unconditional + np.float32(scale) * (conditional - unconditional)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class _Embedder:
    """Codes (b) to a picture token's numbers (b, 1, width), where codes are no token ids."""

    def __init__(self, engine: Engine | None, rows: int) -> None:
        if engine is not None:
            self.codes = np.zeros((rows, 1), dtype=np.int64)
            width = engine.outputs["image_tokens"].fixed(2, "width")
            self.tokens = np.zeros((rows, 1, width), dtype=np.float32)
            self.binding = engine.bind({"codes": self.codes}, {"image_tokens": self.tokens})

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        self.codes[:, 0] = codes
        self.binding.run()
        return self.tokens


def _decode(codes: np.ndarray, loop: ImageTokensLoop, decoder: Engine, clock: CodesClock) -> np.ndarray:
    """Codes (n) of one picture to pixels (3, H, W)."""
    start = time.perf_counter()
    pixels = np.zeros((1, 3, loop.image_height, loop.image_width), dtype=np.float32)
    decoder.bind({"codes": codes[None].astype(np.int64)}, {"pixels": pixels}).run()
    check_finite(pixels, "vq_decoder, pixels")
    clock.decode_s += time.perf_counter() - start
    return pixels[0].clip(0, 1)
