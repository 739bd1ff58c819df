"""How one model talks: a caller's messages and options become requests, and conversations to write their replies in.

Prefill, sampling and stopping are in text_loop.py and text_batch.py, pictures in sight.py; drawing is in drawing.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from edgemm.errors import BundleError, InputError, UsageError
from edgemm.loops import TextLoop
from edgemm.picture import PictureSource
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.constraint import ConstraintMaker
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.events import TextChunk
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.prompt import Message, Prompt, as_messages, chat_prompt, check_length
from edgemm.runtimes.results import TextResult
from edgemm.runtimes.sight import Sight
from edgemm.runtimes.text_batch import write_replies
from edgemm.runtimes.text_loop import Clock, TextRequest, write_reply
from edgemm.runtimes.text_options import TextOptions
from edgemm.tokenizer import Tokenizer

__all__ = ["Talking"]

Messages = Sequence[dict[str, Any]]
Pictures = list[np.ndarray]  # (3, S, S) each


class Talking:
    """The text half of a model."""

    def __init__(self, engines: Engines, sight: Sight, tokenizer: Tokenizer, budget: CacheBudget) -> None:
        self.tokenizer = tokenizer
        self.constraints = _constraint_maker(engines)
        self._engines, self._sight, self._budget = engines, sight, budget
        self._manifest = engines.bundle.manifest

    @property
    def loop(self) -> TextLoop:
        if self._manifest.loops.text is None:
            raise BundleError(f"bundle {self._manifest.name} does not talk: it has no text loop")
        return self._manifest.loops.text

    def request(self, messages: Sequence[Message], options: TextOptions) -> tuple[TextRequest, Pictures]:
        """What the loop wants of a whole conversation, and its pictures; bad options and pictures are refused here."""
        self.check_guesses(options)
        prompt = chat_prompt(messages, self.loop, self.tokenizer)
        check_length(len(prompt), self._manifest.limits)
        return options.request(prompt, self.loop, self.constraints), self.pictures(messages)

    def requests(
        self,
        prompts: Sequence[str | Messages],
        images: Sequence[Sequence[PictureSource]] | None,
        options: TextOptions,
    ) -> list[tuple[TextRequest, Pictures]]:
        """One a prompt; `images` are a list a prompt."""
        if isinstance(prompts, str) or not prompts:
            raise UsageError("prompts is empty or a string, expected a list of prompts")
        given = [()] * len(prompts) if images is None else images
        if len(given) != len(prompts):
            raise UsageError(f"images has {len(given)} lists, expected one for each of {len(prompts)} prompts")
        return [self.request(as_messages(prompt, own), options) for prompt, own in zip(prompts, given)]

    def pictures(self, messages: Sequence[Message]) -> Pictures:
        """Every picture of the messages, in their order."""
        return [self.picture(image) for message in messages for image in message.images]

    def picture(self, image: PictureSource) -> np.ndarray:
        return self._sight.picture(image, self.loop)

    def look(self, prompt: Prompt, pictures: Pictures, clock: Clock) -> tuple[Prompt, np.ndarray | None]:
        """The prompt as the transformer reads it, and the image tokens beside it."""
        return self._sight.timed_look(prompt, pictures, self.loop, clock)

    def conversation(self, rows: int = 1) -> CachedTransformer:
        """The transformer with an empty memory, for one reply or several side by side."""
        engines, most = self._engines, self._manifest.limits.max_context
        head = engines.get("text_head") if "text_head" in engines else None
        return CachedTransformer(
            engines.get("transformer"), most, head=head, rows=rows, budget=self._budget, silent=self._silent
        )

    def timed_conversation(self, clock: Clock) -> CachedTransformer:
        """The same; what its engines take to load is told apart."""
        start = time.perf_counter()
        made = self.conversation()
        clock.load_s += time.perf_counter() - start
        return made

    def write(
        self,
        request: TextRequest,
        image_tokens: np.ndarray | None,
        cancelled: Callable[[], bool],
        clock: Clock,
        transformer: CachedTransformer,
    ) -> Iterator[TextChunk]:
        """One reply, after what the transformer has read already."""
        yield from write_reply(request, image_tokens, transformer, self.tokenizer, cancelled, clock)

    def write_batch(
        self, asked: Sequence[tuple[TextRequest, Pictures]], began: float, cancelled: Callable[[], bool]
    ) -> list[TextResult]:
        """Several replies, side by side."""
        if any(request.guess_ahead for request, _ in asked):
            raise UsageError("guess_ahead is for one reply at a time: leave it out, or call generate_text")
        clocks = [Clock(began) for _ in asked]
        seen = [self.look(request.prompt, own, clock) for (request, own), clock in zip(asked, clocks)]
        requests = [replace(request, prompt=prompt) for (request, _), (prompt, _) in zip(asked, seen)]
        transformer = self.conversation(rows=len(requests))
        return write_replies(requests, [tokens for _, tokens in seen], transformer, self.tokenizer, cancelled, clocks)

    def check_guesses(self, options: TextOptions) -> None:
        inputs = self._manifest.variant("transformer", self._engines.target).inputs
        if options.guess_ahead and all(spec.name != "draft_index" for spec in inputs):
            raise InputError("guess_ahead needs a bundle whose transformer checks guesses: export it with --drafts")

    def check_interleaving(self) -> None:
        if self.loop.joined:
            raise InputError("this model reads a conversation as one string, in which no drawn picture can be put")

    @cached_property
    def _silent(self) -> np.ndarray | None:
        path = self._manifest.loops.text and self._manifest.loops.text.silent_ids
        return self._engines.ids(path) if path else None


def _constraint_maker(engines: Engines) -> ConstraintMaker:
    manifest = engines.bundle.manifest
    speaker, size = "text_head" if "text_head" in engines else "transformer", 0
    if speaker in engines:
        outputs = manifest.variant(speaker, engines.target).outputs
        size = next((spec.fixed(1, "vocabulary") for spec in outputs if spec.name == "logits"), 0)
    stops = () if manifest.loops.text is None else manifest.loops.text.stop_token_ids
    return ConstraintMaker(engines.bundle.file(manifest.tokenizer), size, stops)
