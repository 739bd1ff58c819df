"""The loop that writes a reply: prefill, then sample and step until something ends it.

It knows ids, logits and text, never files, devices, messages or pixels: see prompt.py and text.py.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgemm.bundle.prompt import Prompt, Tokenizer
from edgemm.errors import EdgemmError, UsageError
from edgemm.runtimes.constraint import Constraint, StopStrings
from edgemm.runtimes.kv_cache import CachedTransformer, PrefillCancelled
from edgemm.runtimes.prompt_lookup import PromptLookup
from edgemm.runtimes.sampling import Sampling, log_probabilities, next_token
from edgemm.runtimes.text_call import FinishReason, TextChunk, TextMetrics, TextResult, TokenLogprob

__all__ = ["Clock", "Reply", "StreamDecoder", "TextRequest", "write_reply"]

MOST_LOGPROBS = 100  # beside each token
MOST_CANDIDATES = 64
X86 = ("x86_64", "AMD64")
INCOMPLETE = "\ufffd"  # what a decoder shows for bytes that are not yet, or never, a character


@dataclass(frozen=True, eq=False)
class TextRequest:
    """A prompt and how its reply may go."""

    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    logprobs: int | None = None  # how many of the likeliest tokens to tell beside each chosen one; None tells nothing
    constraint: Constraint | None = None  # what may come next
    history: tuple[int, ...] = ()  # text ids of earlier turns, for the repetition penalty
    prompt_lookup_num_tokens: int | None = None  # candidates at most, found in what was said and checked in one run;
    # None: as many as pay, where the transformer can

    def __post_init__(self) -> None:
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}, expected 0 to {MOST_LOGPROBS}")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if not 0 <= (self.prompt_lookup_num_tokens or 0) <= MOST_CANDIDATES:
            found = self.prompt_lookup_num_tokens
            raise UsageError(f"prompt_lookup_num_tokens is {found}, expected 0 to {MOST_CANDIDATES}")
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


class StreamDecoder:
    """Ids in one by one, text out as soon as it is whole; the pieces joined are the whole decoded at once.

    A character may be several tokens of bytes: they are held back until it is complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # ids before this are only history
        self._shown = 0  # ids before this have been given out

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps empty."""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(INCOMPLETE):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return fresh

    def flush(self) -> str:
        """What was held back, at the end of a reply."""
        fresh = self._fresh()
        self._start = self._shown = len(self._ids)
        return fresh

    def _fresh(self) -> str:
        history = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(history) :]


class Reply:
    """One reply in the making: what it has, and why it ended once it has."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer) -> None:
        self.request = request
        self.reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._generator = np.random.Generator(np.random.PCG64(request.sampling.seed))
        self._history = [*request.history, *request.prompt.text_ids]
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._decoder, self._stops = StreamDecoder(tokenizer), StopStrings(request.stop)

    def choose(self, logits: np.ndarray) -> int:
        """The next token, from logits (v)."""
        constraint, sampling = self.request.constraint, self.request.sampling
        if constraint is None:
            return next_token(logits, self._history, sampling, self._generator)
        token = next_token(constraint.allowed(logits), self._history, sampling, self._generator)
        constraint.accept(token)
        return token

    def add(self, token: int, logits: np.ndarray) -> TextChunk | None:
        """Takes a token in; None when it is one that ends the reply and is no part of it."""
        request = self.request
        if token in request.stop_token_ids:
            self.reason = "stop"
            return None
        self._ids.append(token)
        self._history.append(token)
        self._texts.append(self._stops.push(self._decoder.push(token)))
        told = () if request.logprobs is None else (_logprob(token, logits, request.logprobs, self._tokenizer),)
        self._logprobs += told
        if self._stops.hit or (request.constraint and request.constraint.complete):
            self.reason = "stop"
        elif len(self._ids) == request.max_new_tokens:
            self.reason = "length"
        return TextChunk((token,), self._texts[-1], logprobs=told)

    def end(self, clock: Clock) -> TextChunk:
        """The last chunk, with what was held back and the whole result."""
        assert self.reason is not None
        last = ""
        if not self._stops.hit:
            last = self._stops.push(self._decoder.flush())
            if self._stops.hit:  # in what was held back
                self.reason = "stop"
            else:
                last += self._stops.flush()
        request = self.request
        result = TextResult(
            text="".join([*self._texts, last]),
            token_ids=tuple(self._ids),
            finish_reason=self.reason,
            seed=request.sampling.seed if request.sampling.temperature else None,
            metrics=_metrics(request, clock, len(self._ids)),
            logprobs=None if request.logprobs is None else tuple(self._logprobs),
        )
        return TextChunk((), last, finished=True, finish_reason=self.reason, result=result)


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
    reply, step = Reply(request, tokenizer), 0
    if cancelled():
        reply.reason = "cancelled"
        yield reply.end(clock)
        return
    try:
        start = time.perf_counter()
        try:
            logits = transformer.prefill(request.prompt, image_tokens, cancelled=cancelled)
        except PrefillCancelled:
            logits, reply.reason = transformer.logits[0], "cancelled"
        clock.prefill_s = time.perf_counter() - start
        steps = _steps(request, transformer)
        if cancelled():
            reply.reason = "cancelled"
        while reply.reason is None:
            token = reply.choose(logits)
            if step == 0:
                clock.first_token_s = clock.since_began()
            else:
                clock.decode_s += time.perf_counter() - start
                clock.decode_steps += 1
            chunk = reply.add(token, logits)
            if chunk is not None:
                yield chunk
            if reply.reason is None and transformer.full:
                reply.reason = "length"
            elif reply.reason is None and cancelled():
                reply.reason = "cancelled"
            elif reply.reason is None:
                start = time.perf_counter()
                logits = steps.step(token)
                step += 1
    except EdgemmError:
        yield TextChunk((), "", finished=True, finish_reason="error")
        raise
    yield reply.end(clock)


def _steps(request: TextRequest, transformer: CachedTransformer) -> CachedTransformer | PromptLookup:
    """What gives the logits after each token.  Unasked nothing is looked up where a reply might become another: only
    x86's products were held to the same bits with candidates and without (export/passes/steady_rows.py)."""
    most = request.prompt_lookup_num_tokens
    if most == 0 or (most is None and not (transformer.takes_candidates and platform.machine() in X86)):
        return transformer
    said = [*request.history, *request.prompt.text_ids]
    return PromptLookup(transformer, said, most)


def _logprob(token: int, logits: np.ndarray, count: int, tokenizer: Tokenizer) -> TokenLogprob:
    logprobs = log_probabilities(logits)  # (v)
    likeliest = np.argsort(-logprobs, kind="stable")[:count]
    top = tuple((int(i), _spelled(int(i), tokenizer), float(logprobs[i])) for i in likeliest)
    return TokenLogprob(token, _spelled(token, tokenizer), float(logprobs[token]), top)


def _spelled(token: int, tokenizer: Tokenizer) -> str:
    """A token's text as it stands behind others: some tokenizers take the blank before a text's first word away."""
    alone = tokenizer.decode([token])
    return alone if INCOMPLETE in alone else tokenizer.decode([token, token])[len(alone) :]


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
