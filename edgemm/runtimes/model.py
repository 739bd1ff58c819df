"""An opened bundle that talks and draws: what `edgemm.load` gives back.

The public face alone: the text half is in text.py and session.py, the drawing half in drawing.py, what is loaded in
engines.py.  It knows no graph, no sampling and no schedule.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.picture import PictureSource
from edgemm.bundle.prompt import Message, as_messages
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.device.threads import ThreadPlan
from edgemm.errors import EdgemmError, UsageError
from edgemm.runtimes.adapters import Adapter, Adapters
from edgemm.runtimes.backend.choice import Choice
from edgemm.runtimes.backend.engine import Engine
from edgemm.runtimes.cache_budget import CacheBudget, MemoryPlan
from edgemm.runtimes.draw import MOST_PICTURES, Drawing, DrawingOptions, check_whole
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_encoder import Sight
from edgemm.runtimes.interleaved import DRAW_MARKS, InterleavedResult, check_marks, write_interleaved
from edgemm.runtimes.results import DenoiseProgress, ImageResult, TextChunk, TextResult
from edgemm.runtimes.session import Session
from edgemm.runtimes.text import Messages, Talking, TextOptions

__all__ = ["Model", "Calls"]

T = TypeVar("T")
Prompted = str | Messages  # a prompt, or a list of {"role", "content", "images"}


class Model:
    """One bundle on one device.

    Threads may share it.  Runs of its engines take turns, one at a time, and every call has a K/V cache and prefix of
    its own, so calls from several threads, or several open streams, interleave safely and each sees only its own.
    `cancel()` may be called from any thread: every call in progress ends within one token or one denoising step and
    keeps what it has.  Closing one stream ends that call alone.  Use it as a context manager, or `close()` it.
    """

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.bundle: Bundle = engines.bundle
        self.manifest = engines.bundle.manifest
        self.choice: Choice = engines.choice  # what it runs on, and why
        self.threads: ThreadPlan = engines.threads
        self.memory: MemoryPlan = engines.memory
        self.budget = CacheBudget(self.memory.cache_bytes)  # of all conversations together
        self.tokenizer = Tokenizer(self.bundle.file(self.manifest.tokenizer))
        self.sight = Sight(self.engines)
        self.talking = Talking(self.engines, self.sight, self.tokenizer, self.budget)
        self.drawing = Drawing(self.engines, self.sight, self.tokenizer, self.budget)
        self._calls = Calls()

    # Text

    def generate_text(self, prompt: Prompted, images: Sequence[PictureSource] = (), **options: Any) -> TextResult:
        """A reply to a prompt, or to messages; `options` are those of stream_text."""
        for chunk in self.stream_text(prompt, images, **options):
            if chunk.result is not None:
                return chunk.result
        raise EdgemmError("the reply ended without a result")

    def stream_text(
        self,
        prompt: Prompted,
        images: Sequence[PictureSource] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        grammar: str | None = None,
        timeout_s: float | None = None,
        ignore_eos: bool = False,
        guess_ahead: int = 0,
    ) -> Iterator[TextChunk]:
        """The reply in pieces as they come; arguments are checked and pictures read before the first is asked for.

        `prompt` is a string or a list of {"role", "content", "images"}; `images` belong to the last message.  With
        `logprobs` each token tells how likely it was, and so many of the likeliest beside it.  With `json_schema`, or
        `grammar` in Lark's notation, the reply can be nothing else.  After `timeout_s` the reply ends with the reason
        "cancelled" and keeps what it has.  With `ignore_eos` the model's own stop tokens end nothing, so that a
        benchmark times every token it asked for.  With `guess_ahead` up to so many tokens are guessed from what the
        conversation said before and checked in one run: the same reply, sooner where it repeats (`export --drafts`).
        """
        options = TextOptions(
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            stop,
            logprobs,
            json_schema,
            grammar,
            timeout_s,
            ignore_eos,
            guess_ahead,
        )
        return Session(self.talking, self.call).stream_text(prompt, images, **vars(options))

    def session(self, system: str | None = None) -> Session:
        """A conversation that keeps its K/V cache between turns; `system` is its system message."""
        return Session(self.talking, self.call, () if system is None else (Message("system", system),))

    def generate_texts(
        self,
        prompts: Sequence[Prompted],
        images: Sequence[Sequence[PictureSource]] | None = None,
        **options: Any,
    ) -> list[TextResult]:
        """A reply to each prompt, written side by side; `images` are a list a prompt, `options` as in stream_text.

        Every reply is the one that its prompt would get alone, with the same seed.
        """
        began, chosen = time.perf_counter(), TextOptions(**options)
        self.engines.check_open()
        asked = self.talking.requests(prompts, images, chosen)

        def write(cancelled: Callable[[], bool]) -> Iterator[list[TextResult]]:
            yield self.talking.write_batch(asked, began, cancelled)

        return next(self.call(write, chosen.timeout_s))

    def generate(
        self,
        prompt: Prompted,
        images: Sequence[PictureSource] = (),
        drawing: Mapping[str, Any] | None = None,
        draw_marks: tuple[str, str] = DRAW_MARKS,
        max_images: int = 4,
        **options: Any,
    ) -> Iterator[TextChunk | DenoiseProgress | ImageResult | InterleavedResult]:
        """Text and pictures in one reply, as they come, and at last the whole InterleavedResult.

        What the model writes between `draw_marks` is drawn, with the options `drawing` (those of stream_image), and the
        picture is read back before the reply goes on; `options` are those of stream_text.
        """
        self.engines.check_open()
        chosen, marks, drawn = TextOptions(**options), check_marks(draw_marks), DrawingOptions(**(drawing or {}))
        check_whole("max_images", max_images, 1, MOST_PICTURES)
        self.drawing.start("the options are checked before anything is written", drawn)
        self.talking.check_interleaving()
        request, pictures = self.talking.request(as_messages(prompt, images), chosen)
        return self.call(
            lambda cancelled: write_interleaved(
                self.talking, self.drawing, request, pictures, marks, max_images, drawn, cancelled
            ),
            chosen.timeout_s,
        )

    # Pictures

    def generate_image(self, prompt: str, **options: Any) -> ImageResult:
        """A picture of a prompt; `options` are those of stream_image."""
        for event in self.stream_image(prompt, **options):
            if isinstance(event, ImageResult):
                return event
        raise EdgemmError("drawing ended without a result")

    def stream_image(
        self,
        prompt: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        num_images: int = 1,
        noise: np.ndarray | None = None,
        preview: bool = False,
        timeout_s: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        image: PictureSource | None = None,
        width: int | None = None,
        height: int | None = None,
        image_guidance_scale: float | None = None,
    ) -> Iterator[DenoiseProgress | ImageResult]:
        """Progress after every step, with previews when asked for, and at last the ImageResult.

        What is None is the bundle's own default.  Picture number i has the seed `seed + i`; `noise`, (n, p) or
        (c, h, w), for several pictures with their number before it, takes the place of the seeds' noise.  Guidance
        leads away from `negative_prompt`, or from the empty prompt; guidance 1 leaves that half out.  `image` is a
        picture to edit, for bundles that can, and `image_guidance_scale` how closely it is kept, for models that know
        that.  `width` and `height`, in pixels, are for models that draw several sizes.  Models that draw by denoising
        take steps, noise and previews; those that draw token by token take temperature, top_k and top_p.
        """
        self.engines.check_open()
        options = DrawingOptions(
            num_inference_steps,
            guidance_scale,
            seed,
            num_images,
            noise,
            preview,
            timeout_s,
            temperature,
            top_k,
            top_p,
            negative_prompt,
            image,
            width,
            height,
            image_guidance_scale,
        )
        return self.call(self.drawing.start(prompt, options), timeout_s)

    # Adapters

    @property
    def adapters(self) -> Adapters:
        return self.engines.adapters

    def load_adapter(self, name: str, path: str | os.PathLike[str], strength: float = 1.0) -> None:
        """Reads an adapter in PEFT's layout; set_adapter makes it the one that calls take.

        What it adds is multiplied by `strength`: half of a style keeps more of the model's own drawing.  One folder may
        be loaded under several names.
        """
        self.adapters.load(name, Path(path), strength)

    def set_adapter(self, name: str | None) -> None:
        """The adapter of every call and session that begins from now on; None for none.  Takes no copy."""
        self.adapters.set(name)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; calls that began with it keep it to their end."""
        self.adapters.unload(name)

    # Life

    @property
    def choices(self) -> dict[str, Choice]:
        """What each component runs on, and why."""
        return self.engines.choices

    def cancel(self) -> None:
        """Ends every call in progress, from any thread; each keeps what it has."""
        self._calls.cancel()

    def close(self) -> None:
        """Ends every call and lets the engines go; a closed model answers nothing more."""
        self.engines.close()
        self.cancel()

    def prepare(self) -> None:
        """Loads every engine now, so that no first call has to wait for one."""
        self.engines.timed(tuple(self.engines.components))

    def engine(self, component: str, adapter: Adapter | None = None) -> Engine:
        """A component's engine, loaded when first asked for, with the active adapter or the one given."""
        return self.engines.get(component, adapter)

    def watch_engines(self, watch: Callable[[Engine], Engine]) -> None:
        """Loads every engine and puts `watch(engine)` in its place: for measuring, between calls."""
        self.engines.watch(watch)

    def call(self, start: Callable[[Callable[[], bool]], Iterator[T]], timeout_s: float | None) -> Iterator[T]:
        """Runs a loop with a `cancelled` that hears cancel(), close() and the clock."""

        def begin(cancelled: Callable[[], bool]) -> Iterator[T]:
            self.engines.check_open()
            return start(cancelled)

        return self._calls.run(begin, timeout_s)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# The calls in progress of one model: how each hears that it should end, from any thread or the clock.


class Calls:
    """Every stream that has begun and not ended."""

    def __init__(self) -> None:
        self._running: set[threading.Event] = set()
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Asks every call in progress to end; each hears it within one token or one denoising step."""
        with self._lock:
            running = tuple(self._running)
        for call in running:
            call.set()

    def run(self, start: Callable[[Callable[[], bool]], Iterator[T]], timeout_s: float | None) -> Iterator[T]:
        """The loop that `start` makes, given a `cancelled` that hears cancel() and the clock; time counts from now."""
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"timeout_s is {timeout_s}, expected above 0")
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        return self._run(start, deadline)

    def _run(self, start: Callable[[Callable[[], bool]], Iterator[T]], deadline: float) -> Iterator[T]:
        cancel = threading.Event()
        with self._lock:
            self._running.add(cancel)
        try:
            yield from start(lambda: cancel.is_set() or time.monotonic() >= deadline)
        finally:
            with self._lock:
                self._running.discard(cancel)
