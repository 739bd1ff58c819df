"""The loop that draws a picture token after token, row by row, with guidance, and then decodes their codes.

Every picture has two rows in the transformer's batch, the prompt and the unconditional one, and both read the token
that their guided logits gave.  The loop knows codes and token ids, never strings, files or devices; its request
is made of a prompt and its options below it.
Axes: b batch (pictures' prompts, then their unconditional rows), n codes of a picture, v what can be said at a place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgemm.bundle.drawing import SIDE_BY_SIDE, ImageTokensLoop
from edgemm.bundle.manifest import Limits
from edgemm.bundle.prompt import Prompt, Tokenizer, causal_prompt, check_length, prompt_between
from edgemm.errors import UsageError
from edgemm.runtimes.backend.engine import Engine, check_finite
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, DrawingOptions, ImageResult, Picture
from edgemm.runtimes.kv_cache import PIECE, CachedTransformer, KVCache, PrefillCancelled
from edgemm.runtimes.sampling import Sampling, next_token

if TYPE_CHECKING:
    from edgemm.runtimes.adapters import Adapter
    from edgemm.runtimes.cache_budget import CacheBudget

__all__ = [
    "CodesEngines",
    "CodesRequest",
    "codes_request",
    "draw_codes",
    "guide",
    "image_prompt",
    "open_codes",
    "unconditional_prompt",
    "write_codes",
]

BLOCK = 64  # slots a cache grows by
BY_DENOISING = ("num_inference_steps", "noise", "preview", "image_guidance_scale", "width", "height", "one_call")


@dataclass(frozen=True, eq=False)
class CodesRequest:
    """A prompt and how it is to be drawn; made by codes_request."""

    prompt: Prompt
    unconditional: Prompt | None  # None: no guidance
    guidance_scale: float
    sampling: Sampling
    seeds: tuple[int, ...]  # one a picture
    told: tuple[int, ...] = ()  # codes that are read in the place of those chosen, for comparison


@dataclass(frozen=True)
class CodesEngines:
    transformer: Engine
    vq_decoder: Engine
    image_head: Engine | None  # both or none
    image_embedder: Engine | None
    code_ids: np.ndarray | None  # (codes) token id of each code; None where image_head knows codes alone
    max_context: int
    budget: CacheBudget | None = None


def draw_codes(
    request: CodesRequest,
    loop: ImageTokensLoop,
    engines: CodesEngines,
    cancelled: Callable[[], bool],
    clock: DrawingClock,
) -> Iterator[DenoiseProgress | ImageResult]:
    """Progress after every code, then one ImageResult with every picture; one that was cancelled is left out."""
    pictures: list[Picture] = []
    count = loop.rows * loop.columns
    together = _side_by_side(request, loop, engines)
    for first in range(0, len(request.seeds), together):
        batch = replace(request, seeds=request.seeds[first : first + together])
        codes: list[np.ndarray] = []  # n of (pictures)
        for chosen in write_codes(batch, loop, engines, cancelled, clock):
            codes.append(chosen)
            yield DenoiseProgress(len(codes), count, len(codes) / count, first)
        if len(codes) < count:
            break
        for seed, picture in zip(batch.seeds, np.stack(codes, axis=1)):
            pictures.append(Picture(_decode(picture, loop, engines.vq_decoder, clock), seed))
    finished = len(pictures) == len(request.seeds)
    yield ImageResult(tuple(pictures), "stop" if finished else "cancelled", clock.metrics(len(request.prompt)))


def _side_by_side(request: CodesRequest, loop: ImageTokensLoop, engines: CodesEngines) -> int:
    """How many pictures in one batch: fewer, where the memory limit holds no more, and always one."""
    rows = 1 if request.unconditional is None else 2
    slots = max(len(request.prompt), len(request.unconditional or ())) + loop.length
    cache = KVCache(engines.transformer, engines.max_context, BLOCK, engines.budget)
    return next((count for count in range(SIDE_BY_SIDE, 1, -1) if cache.could_hold(count * rows, slots)), 1)


def write_codes(
    request: CodesRequest,
    loop: ImageTokensLoop,
    engines: CodesEngines,
    cancelled: Callable[[], bool],
    clock: DrawingClock,
) -> Iterator[np.ndarray]:
    """The next code of every picture (pictures), again and again; ends early when it is cancelled.

    Where codes are told it says what it would have chosen and goes on with those.
    """
    seeds, told = request.seeds, request.told
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    prompts = [request.prompt] * len(seeds)
    if request.unconditional is not None:
        prompts += [request.unconditional] * len(seeds)
    transformer = CachedTransformer(
        engines.transformer, engines.max_context, BLOCK, engines.image_head, len(prompts), engines.budget
    )
    embed = _Embedder(engines.image_embedder, len(prompts))
    longest = max(map(len, prompts))
    room = longest + loop.length
    if cancelled():
        return
    start = time.perf_counter()
    if longest <= PIECE:
        logits = transformer.prefill_rows(prompts, slots=room)
    else:  # one after the other, so that cancel() is heard between two pieces
        try:
            rows = [transformer.prefill(said, None, room, row, cancelled).copy() for row, said in enumerate(prompts)]
        except PrefillCancelled:
            return
        logits = np.stack(rows)
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


def _decode(codes: np.ndarray, loop: ImageTokensLoop, decoder: Engine, clock: DrawingClock) -> np.ndarray:
    """Codes (n) of one picture to pixels (3, H, W)."""
    start = time.perf_counter()
    pixels = np.zeros((1, 3, loop.image_height, loop.image_width), dtype=np.float32)
    decoder.bind({"codes": codes[None].astype(np.int64)}, {"pixels": pixels}).run()
    check_finite(pixels, "vq_decoder, pixels")
    clock.decode_s += time.perf_counter() - start
    return pixels[0].clip(0, 1)


def open_codes(
    engines: Engines, loop: ImageTokensLoop, clock: DrawingClock, adapter: Adapter | None = None
) -> CodesEngines:
    """What draws token by token, with the active adapter or the one given."""
    start, own_head = time.perf_counter(), loop.code_ids is None
    opened = CodesEngines(
        engines.get("transformer", adapter),
        engines.get("vq_decoder"),
        engines.get("image_head") if own_head else None,
        engines.get("image_embedder") if own_head else None,
        None if loop.code_ids is None else engines.ids(loop.code_ids),
        engines.bundle.manifest.limits.max_context,
        engines.budget,
    )
    clock.load_s = time.perf_counter() - start
    return opened


def codes_request(
    options: DrawingOptions, prompt: str, loop: ImageTokensLoop, limits: Limits, tokenizer: Tokenizer
) -> CodesRequest:
    """What the loop wants, or UsageError."""
    options.refuse("draws token by token", *BY_DENOISING)
    scale = options.scale("guidance_scale", loop.guidance_scale)
    if options.negative_prompt is not None and scale == 1:
        raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
    tokens = image_prompt(prompt, loop, tokenizer)
    blank = None if scale == 1 else unconditional_prompt(tokens, options.negative_prompt, loop, tokenizer)
    check_length(max(len(tokens), len(blank or ())) + loop.length, limits)
    sampling = Sampling(
        loop.temperature if options.temperature is None else options.temperature,
        loop.top_k if options.top_k is None else options.top_k,
        loop.top_p if options.top_p is None else options.top_p,
    )
    return CodesRequest(tokens, blank, scale, sampling, options.seeds)


def image_prompt(prompt: str, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    """What the first token of a picture follows."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError("prompt is empty, expected some text")
    return _around(prompt, loop, tokenizer)


def unconditional_prompt(prompt: Prompt, negative: str | None, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    """The other half of guidance: the same prompt blotted out, or one that says what is not wanted."""
    if loop.unconditional == "prompt":
        return _around(loop.negative_prompt if negative is None else negative, loop, tokenizer)
    if negative is not None:
        raise UsageError("negative_prompt is given, but this model guides away from a blotted-out prompt")
    kept = np.isin(prompt.input_ids, loop.kept_ids)
    return causal_prompt(np.where(kept, prompt.input_ids, loop.pad_id))


def _around(prompt: str, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    return prompt_between(loop.open, prompt.strip() if loop.strip else prompt, loop.close, tokenizer)
