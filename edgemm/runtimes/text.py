"""How one model writes text: messages and options become requests, and conversations to write their replies in.

Prefill, sampling and stopping are in text_loop.py, replies side by side in text_batch.py, pictures in image_encoder.py;
drawing is in draw.py.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from edgemm.bundle.chat import Message, as_messages, chat_prompt, with_graph
from edgemm.bundle.components import TensorSpec
from edgemm.bundle.manifest import MovedFrame, TextLoop
from edgemm.bundle.picture import PictureSource, PictureSources
from edgemm.bundle.prompt import Prompt, Tokenizer, check_length
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.options import check_type
from edgemm.runtimes.constraint import ConstraintMaker
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_encoder import ImageReader
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.sampling import Sampling
from edgemm.runtimes.text_batch import TextBatch, Writing
from edgemm.runtimes.text_call import Prompted, TextChunk, TextOptions, TextResult
from edgemm.runtimes.text_loop import Clock, TextRequest, write_reply

__all__ = ["TextGenerator"]

Pictures = list[np.ndarray]  # (3, S, S) each


class TextGenerator:
    """The text half of a model."""

    def __init__(self, engines: Engines, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.constraints = _constraint_maker(engines)
        self.reader = ImageReader(engines)
        self._engines = engines
        self.manifest = engines.bundle.manifest

    @property
    def loop(self) -> TextLoop:
        if self.manifest.loops.text is None:
            raise InputError(f"bundle {self.manifest.name} gives no text: it has no text loop")
        return self.manifest.loops.text

    @property
    def cache_inputs(self) -> list[TensorSpec]:
        """The K/V cache as the transformer of this target takes it."""
        inputs = self.manifest.variant("transformer", self._engines.target).inputs
        return [spec for spec in inputs if spec.name.startswith("past_")]

    def check_open(self) -> None:
        """UsageError of a model that was closed."""
        self._engines.check_open()

    def request(self, messages: Sequence[Message], options: TextOptions) -> tuple[TextRequest, Pictures]:
        """What the loop wants of a whole conversation, and its pictures; bad options and pictures are refused here."""
        messages = self.with_video(messages, options)
        prompt = self.prompt(messages)
        check_length(len(prompt), self.manifest.limits)
        return self.request_of(prompt, options), self.pictures(messages)

    def messages(self, prompt: Prompted, images: PictureSources, options: TextOptions) -> tuple[Message, ...]:
        """What is said, with the graph that it is about; request() adds a video's frames."""
        return with_graph(as_messages(prompt, images), options.graph, self.loop.graph)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """A whole conversation as tokens; no picture is opened for it."""
        self.check_pictures(messages)
        return chat_prompt(messages, self.loop, self.tokenizer)

    def with_video(self, messages: Sequence[Message], options: TextOptions) -> tuple[Message, ...]:
        """The messages, with the frames of a video behind the pictures of the last one."""
        *before, last = messages
        if options.video is None:
            if options.fps is not None:
                raise UsageError("fps is for videos, and there is none: give video")
            return tuple(messages)
        self.reader.check()
        from edgemm.runtimes.video import read_video

        most = self.manifest.limits.max_image_pixels
        frames = read_video(options.video, self.loop, options.fps, options.max_frames, most)
        last = replace(last, images=(*last.images[: last.loose], *self.loop.clip(frames), *last.images[last.loose :]))
        if (tokens := len(self.prompt((*before, last)))) > self.manifest.limits.max_context:
            raise InputError(
                f"the prompt takes {tokens} tokens with {len(frames)} frames, this bundle holds "
                f"at most {self.manifest.limits.max_context}; give a smaller max_frames"
            )
        return (*before, last)

    def check_pictures(self, messages: Sequence[Message]) -> None:
        """InputError of pictures that are shown to a model that reads none."""
        if any(message.images for message in messages):
            self.reader.check()

    def request_of(self, prompt: Prompt, options: TextOptions, history: tuple[int, ...] = ()) -> TextRequest:
        """What the loop wants of a prompt; raises UsageError by the option's name."""
        self._check_prompt_lookup(options)
        constraint = None
        if options.json_schema is not None or options.grammar is not None:
            constraint = self.constraints.make(options.json_schema, options.grammar)
        return TextRequest(
            prompt,
            _sampling(options),
            max_new_tokens=options.max_new_tokens,
            stop=tuple(options.stop),
            stop_token_ids=() if options.ignore_eos else self.loop.stop_token_ids,
            logprobs=options.logprobs,
            constraint=constraint,
            history=history,
            prompt_lookup_num_tokens=options.prompt_lookup_num_tokens,
        )

    def requests(
        self,
        prompts: Sequence[Prompted],
        images: Sequence[PictureSources] | None,
        options: TextOptions,
    ) -> list[tuple[TextRequest, Pictures]]:
        """One a prompt; `images` are a list a prompt."""
        check_type("prompts", prompts, Sequence)
        check_type("images", images, Sequence | None)
        if options.video is not None:
            raise UsageError("video is for one prompt at a time: give generate_texts the frames as images")
        if not prompts:
            raise UsageError("prompts is empty, expected at least one")
        given: Sequence[Any] = [()] * len(prompts) if images is None else images
        if len(given) != len(prompts):
            raise UsageError(f"images has {len(given)} lists, expected one for each of {len(prompts)} prompts")
        return [self.request(self.messages(prompt, own, options), options) for prompt, own in zip(prompts, given)]

    def pictures(self, messages: Sequence[Message]) -> Pictures:
        """Every picture of the messages, in their order."""
        return [self.picture(image) for message in messages for image in message.images]

    def picture(self, image: PictureSource | MovedFrame) -> np.ndarray:
        return self.reader.picture(image, self.loop)

    def read_pictures(self, prompt: Prompt, pictures: Pictures, clock: Clock) -> tuple[Prompt, np.ndarray | None]:
        """The prompt as the transformer reads it, and the image tokens beside it."""
        return self.reader.timed_read(prompt, pictures, self.loop, clock)

    def conversation(self, rows: int = 1) -> CachedTransformer:
        """The transformer with an empty memory, for one reply or several side by side."""
        engines, most = self._engines, self.manifest.limits.max_context
        head = engines.get("text_head") if "text_head" in engines else None
        return CachedTransformer(
            engines.get("transformer"), most, head=head, rows=rows, budget=engines.budget, silent=self._silent
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

    def batch(self, most: int) -> TextBatch:
        """So many replies side by side at most, none of which is there yet."""
        inputs = self.manifest.variant("transformer", self._engines.target).inputs
        size = next(spec.shape[0] for spec in inputs if spec.name == "input_ids")
        return TextBatch(self.conversation, self.tokenizer, min(most, size) if isinstance(size, int) else most)

    def writing(
        self, asked: tuple[TextRequest, Pictures], cancelled: Callable[[], bool], began: float | None = None
    ) -> Writing:
        """A reply for a batch."""
        request, pictures = asked
        if request.prompt_lookup_num_tokens:
            raise UsageError("prompt_lookup_num_tokens is for one reply at a time: leave it out, or call generate_text")
        clock = Clock() if began is None else Clock(began)
        return Writing(request, lambda clock: self.read_pictures(request.prompt, pictures, clock), cancelled, clock)

    def write_batch(
        self, asked: Sequence[tuple[TextRequest, Pictures]], began: float, cancelled: Callable[[], bool]
    ) -> list[TextResult]:
        """Several replies, side by side."""
        batch, results = self.batch(len(asked)), {}
        writings = [self.writing(each, cancelled, began) for each in asked]
        waiting = deque(writings)
        while waiting or len(batch):
            while waiting and not batch.full:  # a graph of so many rows takes no more at once
                batch.add(waiting.popleft())
            for writing, said in batch.turn(together=True):
                if isinstance(said, EdgemmError):
                    raise said
                if said.result is not None:
                    results[writing] = said.result
        return [results[writing] for writing in writings]

    def _check_prompt_lookup(self, options: TextOptions) -> None:
        inputs = self.manifest.variant("transformer", self._engines.target).inputs
        if options.prompt_lookup_num_tokens and all(spec.name != "draft_index" for spec in inputs):
            raise InputError(
                "prompt_lookup_num_tokens needs a bundle whose transformer gives logits of several positions: "
                "export it with --prompt-lookup"
            )

    def check_interleaving(self) -> None:
        if self.loop.joined:
            raise InputError("this model reads a conversation as one string, in which no drawn picture can be put")

    @cached_property
    def _silent(self) -> np.ndarray | None:
        path = self.manifest.loops.text and self.manifest.loops.text.silent_ids
        return self._engines.ids(path) if path else None


def _sampling(options: TextOptions) -> Sampling:
    """How tokens are chosen; UsageError where nobody asked for a choice, and something is to be left out of it."""
    temperature = 0.0 if options.temperature is None else options.temperature
    seed = secrets.randbits(32) if options.seed is None and temperature else options.seed
    chosen = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty, seed)
    for name, all_of_them in (("top_k", None), ("top_p", 1), ("min_p", 0)) if options.temperature is None else ():
        if (found := getattr(options, name)) not in (None, all_of_them):
            raise UsageError(
                f"{name} is {found}, and without a temperature the likeliest token is taken: give temperature, or "
                f"leave {name} out"
            )
    return chosen


def _constraint_maker(engines: Engines) -> ConstraintMaker:
    manifest = engines.bundle.manifest
    head, size = "text_head" if "text_head" in engines else "transformer", 0
    if head in engines:
        outputs = manifest.variant(head, engines.target).outputs
        size = next((spec.fixed(1, "vocabulary") for spec in outputs if spec.name == "logits"), 0)
    stops = () if manifest.loops.text is None else manifest.loops.text.stop_token_ids
    return ConstraintMaker(engines.bundle.file(manifest.tokenizer), size, stops)
