"""The loop that writes a reply: prefill, then sample and step until something ends it.

It knows ids, logits and text, never files, devices, messages or pixels: see prompt.py and model.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgemm.errors import EdgemmError, UsageError
from edgemm.runtimes.events import TextChunk
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.prompt import Prompt
from edgemm.runtimes.results import FinishReason, TextMetrics, TextResult
from edgemm.runtimes.sampling import Sampling, next_token
from edgemm.runtimes.stop_strings import StopStrings
from edgemm.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Clock", "TextRequest", "write_reply"]


@dataclass(frozen=True, eq=False)
class TextRequest:
    """A prompt and how its reply may go."""

    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        StopStrings(self.stop)


@dataclass
class Clock:
    """What a call took so far; seconds."""

    began: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0  # engines loaded by this call
    image_encode_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0  # since it began, without loading
    decode_s: float = 0.0  # steps after the first token
    decode_steps: int = 0

    def since_began(self) -> float:
        return time.perf_counter() - self.began - self.load_s


def write_reply(
    request: TextRequest,
    image_tokens: np.ndarray | None,  # (1, m, width)
    transformer: CachedTransformer,
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool],
    clock: Clock,
) -> Iterator[TextChunk]:
    """A chunk a token, then a last one with the result.

    When numbers go wrong the last chunk has the reason "error" and no result, and then the error is raised.
    """
    ids: list[int] = []
    texts: list[str] = []
    decoder, stops = StreamDecoder(tokenizer), StopStrings(request.stop)
    try:
        tokens = _tokens(request, image_tokens, transformer, clock)
        reason: FinishReason | None = "cancelled" if cancelled() else None
        while reason is None:
            token = next(tokens)
            if token in request.stop_token_ids:
                reason = "stop"
                break
            ids.append(token)
            texts.append(stops.push(decoder.push(token)))
            yield TextChunk((token,), texts[-1])
            if stops.hit:
                reason = "stop"
            elif len(ids) == request.max_new_tokens or transformer.full:
                reason = "length"
            elif cancelled():
                reason = "cancelled"
    except EdgemmError:
        yield TextChunk((), "", finished=True, finish_reason="error")
        raise
    if not stops.hit:
        texts.append(stops.push(decoder.flush()))
        texts[-1] += "" if stops.hit else stops.flush()
    result = TextResult("".join(texts), tuple(ids), reason, _seed(request), _metrics(request, clock, len(ids)))
    yield TextChunk((), texts[-1] if not stops.hit else "", finished=True, finish_reason=reason, result=result)


def _tokens(
    request: TextRequest, image_tokens: np.ndarray | None, transformer: CachedTransformer, clock: Clock
) -> Iterator[int]:
    """Token after token, without end, each computed when it is asked for."""
    generator = np.random.Generator(np.random.PCG64(request.sampling.seed))
    history = request.prompt.text_ids
    start = time.perf_counter()
    logits = transformer.prefill(request.prompt, image_tokens)
    clock.prefill_s = time.perf_counter() - start
    token = next_token(logits, history, request.sampling, generator)
    clock.first_token_s = clock.since_began()
    while True:
        yield token
        start = time.perf_counter()
        history.append(token)
        token = next_token(transformer.step(token), history, request.sampling, generator)
        clock.decode_s += time.perf_counter() - start
        clock.decode_steps += 1


def _seed(request: TextRequest) -> int | None:
    return request.sampling.seed if request.sampling.temperature else None


def _metrics(request: TextRequest, clock: Clock, new_tokens: int) -> TextMetrics:
    return TextMetrics(
        prompt_tokens=len(request.prompt),
        new_tokens=new_tokens,
        image_encode_ms=1e3 * clock.image_encode_s,
        prefill_ms=1e3 * clock.prefill_s,
        time_to_first_token_ms=1e3 * clock.first_token_s,
        decode_tokens_per_s=clock.decode_steps / clock.decode_s if clock.decode_steps else 0.0,
        load_ms=1e3 * clock.load_s,
        total_ms=1e3 * clock.since_began(),
    )
