"""An opened bundle that writes and draws: what `edgemm.load` gives back.

The public face alone: the text half is in text.py and session.py, the drawing half in draw.py, what is loaded in
engines.py.  It knows no graph, no sampling and no schedule.  Each half is imported and made when it is first asked for.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.chat import Message
from edgemm.bundle.prompt import Tokenizer
from edgemm.device.machine import give_back_memory
from edgemm.errors import EdgemmError, UsageError
from edgemm.options import check_type, from_keywords
from edgemm.runtimes.backend.engine import ThreadPlan
from edgemm.runtimes.engines import Choice, Engines
from edgemm.runtimes.image_call import (
    MOST_PICTURES,
    DenoiseProgress,
    DrawingKeywords,
    DrawingOptions,
    ImageResult,
    check_whole,
)
from edgemm.runtimes.text_call import DRAW_MARKS, Prompted, TextChunk, TextKeywords, TextOptions, TextResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgemm.bundle.node_link import GraphSource
    from edgemm.bundle.picture import PictureSources
    from edgemm.runtimes.adapters import Adapters
    from edgemm.runtimes.cache_budget import MemoryPlan
    from edgemm.runtimes.draw import ImageGenerator
    from edgemm.runtimes.interleaved import InterleavedResult
    from edgemm.runtimes.session import Session
    from edgemm.runtimes.text import TextGenerator
    from edgemm.runtimes.text_batch import TextBatch, Writing
    from edgemm.runtimes.watch import Watch

__all__ = ["Calls", "Model"]

T = TypeVar("T")


class Model:
    """One bundle on one device.

    Threads may share it.  Runs of its engines take turns, one at a time, and every call has a K/V cache and prefix of
    its own, so calls from several threads, or several open streams, interleave safely and each sees only its own.
    `cancel()` may be called from any thread: every call in progress ends within one token or one denoising step and
    keeps what it has.  Closing one stream ends that call alone.  Use it as a context manager, or `close()` it.

    Every call may raise UsageError (an argument outside what it can mean, a closed model), InputError (a picture, a
    prompt or an adapter that cannot be used, a prompt that does not fit), MissingError (a package that an option needs)
    and ResourceError (memory).

    What begins with an underscore may change; edgemm's own measurements and checks reach engines by `_engines`.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.bundle: Bundle = engines.bundle
        self.manifest = engines.bundle.manifest
        self.choice: Choice = engines.choice  # what it runs on, and why
        self.threads: ThreadPlan = engines.threads
        self.tokenizer = Tokenizer(
            self.bundle.path / self.manifest.tokenizer, self.bundle.text(self.manifest.tokenizer)
        )
        self._calls = Calls()

    @property
    def memory(self) -> MemoryPlan:
        """What it takes, and what a limit leaves for conversations."""
        return self._engines.memory

    @cached_property
    def _text(self) -> TextGenerator:
        from edgemm.runtimes.text import TextGenerator

        return TextGenerator(self._engines, self.tokenizer)

    @cached_property
    def _image(self) -> ImageGenerator:
        from edgemm.runtimes.draw import ImageGenerator

        return ImageGenerator(self._engines, self.tokenizer)

    # Text

    def generate_text(
        self, prompt: Prompted, images: PictureSources = (), **options: Unpack[TextKeywords]
    ) -> TextResult:
        """A reply to a prompt, or to messages; `options` as in stream_text."""
        chosen = from_keywords(TextOptions, "generate_text()", options, ("images",))
        return self.session()._whole(prompt, images, chosen)

    def stream_text(
        self, prompt: Prompted, images: PictureSources = (), **options: Unpack[TextKeywords]
    ) -> Iterator[TextChunk]:
        """The reply in pieces as they come; arguments are checked and pictures read before the first is asked for.

        `prompt` is a string or a list of {"role", "content", "images"}, where content may be a list of parts as
        transformers and OpenAI have it; `images`, one or a list, belong to the last message.  `options` are the fields
        of TextOptions (edgemm/runtimes/text_call.py, and the table in docs/embedding.md).
        """
        chosen = from_keywords(TextOptions, "stream_text()", options, ("images",))
        return self.session()._stream(prompt, images, chosen)

    def astream_text(
        self, prompt: Prompted, images: PictureSources = (), **options: Unpack[TextKeywords]
    ) -> AsyncGenerator[TextChunk, None]:
        """stream_text for an event loop, which stays free: everything but the options' names is checked in a thread, so
        other errors come with the first chunk.  To close it, or cancel its task, ends the reply."""
        chosen = from_keywords(TextOptions, "astream_text()", options, ("images",))
        from edgemm.runtimes.asynchronous import in_thread

        return in_thread(lambda stopped: self._session(stopped)._stream(prompt, images, chosen))

    def count_tokens(self, prompt: Prompted, images: PictureSources = (), graph: GraphSource | None = None) -> int:
        """How many slots of the context a prompt takes, with its pictures, none of which is opened for it."""
        self._engines.check_open()
        return len(self._text.prompt(self._text.messages(prompt, images, TextOptions(graph=graph))))

    def session(self, system: str | None = None) -> Session:
        """A conversation that keeps its K/V cache between turns; `system` is its system message."""
        check_type("system", system, str | None)
        return self._session(None, () if system is None else (Message("system", system),))

    def _session(self, stopped: threading.Event | None, system: tuple[Message, ...] = ()) -> Session:
        from edgemm.runtimes.session import Session

        return Session(self._text, partial(self._call, stopped=stopped), system)

    def generate_texts(
        self,
        prompts: Sequence[Prompted],
        images: Sequence[PictureSources] | None = None,
        **options: Unpack[TextKeywords],
    ) -> list[TextResult]:
        """A reply to each prompt, written side by side; `images` are a list a prompt, `options` as in stream_text.

        Every reply is the one that its prompt would get alone, with the same seed.
        """
        began, chosen = time.perf_counter(), from_keywords(TextOptions, "generate_texts()", options, ("images",))
        self._engines.check_open()
        asked = self._text.requests(prompts, images, chosen)

        def write(cancelled: Callable[[], bool]) -> Iterator[list[TextResult]]:
            yield self._text.write_batch(asked, began, cancelled)

        return next(self._call(write, chosen.timeout_s))

    def text_batch(self, most: int = 8) -> TextBatch:
        """Replies that join and leave while others are written (text_batch.py); its engines have today's adapter."""
        self._engines.check_open()
        return self._text.batch(most)

    def text_writing(
        self,
        prompt: Prompted,
        images: PictureSources = (),
        cancelled: Callable[[], bool] = lambda: False,
        **options: Unpack[TextKeywords],
    ) -> Writing:
        """A reply for a text_batch of this model; `options` as in stream_text, checked now.  Any thread may call it."""
        self._engines.check_open()
        chosen = from_keywords(TextOptions, "text_writing()", options, ("images", "cancelled"))
        return self._text.writing(self._text.request(self._text.messages(prompt, images, chosen), chosen), cancelled)

    def generate(
        self,
        prompt: Prompted,
        images: PictureSources = (),
        drawing: DrawingKeywords | None = None,
        draw_marks: tuple[str, str] = DRAW_MARKS,
        max_images: int = 4,
        **options: Unpack[TextKeywords],
    ) -> Iterator[TextChunk | DenoiseProgress | ImageResult | InterleavedResult]:
        """Text and pictures in one reply, as they come, and at last the whole InterleavedResult.

        What the model writes between `draw_marks` is drawn, with the options `drawing` (those of stream_image), and the
        picture is read back before the reply goes on; `options` are those of stream_text.
        """
        from edgemm.runtimes.interleaved import Drawing, check_marks, write_interleaved

        self._engines.check_open()
        chosen = from_keywords(TextOptions, "generate()", options, ("images", "drawing", "draw_marks", "max_images"))
        check_type("drawing", drawing, Mapping | None)
        check_whole("max_images", max_images, 1, MOST_PICTURES)
        drawn = from_keywords(DrawingOptions, "generate(drawing=...)", drawing or {})
        how = Drawing(check_marks(draw_marks), max_images, drawn)
        self._image.start("the options are checked before anything is written", drawn)
        self._text.check_interleaving()
        request, pictures = self._text.request(self._text.messages(prompt, images, chosen), chosen)
        return self._call(
            lambda cancelled: write_interleaved(self._text, self._image, request, pictures, how, cancelled),
            chosen.timeout_s,
        )

    def watch(
        self,
        instruction: str = "",
        window: int = 16,
        every: int = 0,
        notes: int = 4,
        reread: bool = False,
        **options: Unpack[TextKeywords],
    ) -> Watch:
        """A stream of pictures in constant memory: push(frame, t), ask(question), events (watch.py).

        The last `window` frames are remembered as pictures.  With `every` the instruction is asked after so many frames
        and what is new becomes an event; the last `notes` events stand before a question.  `reread` reads the whole
        window anew at every question.  `options` as in stream_text.
        """
        from edgemm.runtimes.watch import Watch, WatchOptions

        also = ("instruction", "window", "every", "notes", "reread")
        chosen = from_keywords(TextOptions, "watch()", options, also)
        return Watch(self._text, self._call, instruction, WatchOptions(window, every, notes, reread), chosen)

    # Pictures

    def generate_image(self, prompt: str, **options: Unpack[DrawingKeywords]) -> ImageResult:
        """A picture of a prompt; `options` as in stream_image."""
        for event in self._draw(prompt, from_keywords(DrawingOptions, "generate_image()", options)):
            if isinstance(event, ImageResult):
                return event
        raise EdgemmError("drawing ended without a result")

    def stream_image(self, prompt: str, **options: Unpack[DrawingKeywords]) -> Iterator[DenoiseProgress | ImageResult]:
        """Progress after every step, with previews when asked for, and at last the ImageResult.

        `options` are the fields of DrawingOptions (edgemm/runtimes/image_call.py, and the table in docs/embedding.md).
        Models that draw by denoising take steps, noise and previews; those that draw token by token take temperature,
        top_k and top_p.
        """
        return self._draw(prompt, from_keywords(DrawingOptions, "stream_image()", options))

    def astream_image(
        self, prompt: str, **options: Unpack[DrawingKeywords]
    ) -> AsyncGenerator[DenoiseProgress | ImageResult, None]:
        """stream_image for an event loop, as astream_text is stream_text."""
        chosen = from_keywords(DrawingOptions, "astream_image()", options)
        from edgemm.runtimes.asynchronous import in_thread

        return in_thread(lambda stopped: self._draw(prompt, chosen, stopped))

    def _draw(
        self, prompt: str, options: DrawingOptions, stopped: threading.Event | None = None
    ) -> Iterator[DenoiseProgress | ImageResult]:
        self._engines.check_open()
        return self._call(self._image.start(prompt, options), options.timeout_s, stopped)

    # Adapters

    @property
    def adapters(self) -> Adapters:
        """Those that were loaded, and the one that the next call takes."""
        return self._engines.adapters

    def load_adapter(self, name: str, path: str | os.PathLike[str], strength: float = 1.0) -> None:
        """Reads an adapter in PEFT's layout; set_adapter makes it the one that calls take.

        What it adds is multiplied by `strength`: half of a style keeps more of the model's own drawing.  One folder may
        be loaded under several names.
        """
        check_type("name", name, str)
        check_type("path", path, str | os.PathLike)
        check_type("strength", strength, float)
        self.adapters.load(name, Path(path), strength)

    def set_adapter(self, name: str | None) -> None:
        """The adapter of every call and session that begins from now on; None for none.  Takes no copy."""
        check_type("name", name, str | None)
        self.adapters.set(name)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; calls that began with it keep it to their end."""
        check_type("name", name, str)
        self.adapters.unload(name)

    # Life

    @property
    def choices(self) -> dict[str, Choice]:
        """What each component runs on, and why."""
        return self._engines.choices

    def cancel(self) -> None:
        """Ends every call in progress, from any thread; each keeps what it has."""
        self._calls.cancel()

    def close(self) -> None:
        """Ends every call and lets the engines go; a closed model answers nothing more."""
        self._engines.close()
        self.cancel()
        give_back_memory()

    def release_memory(self) -> None:
        """Gives to the system what earlier calls took and nobody holds any more; sessions stay, and engines, where they
        do not take turns.

        For a program that has read a long prompt and now waits; one token is read on the way, which takes moments.
        """
        self._engines.check_open()
        if self._engines.turns is not None:
            self._engines.turns.close()
        elif self._engines.has_loaded("transformer"):
            self._text.conversation().shrink()
        give_back_memory()

    def prepare(self) -> None:
        """Loads every engine now, so that no first call has to wait for one."""
        self._engines.timed(tuple(self._engines.components))

    def _call(
        self,
        start: Callable[[Callable[[], bool]], Iterator[T]],
        timeout_s: float | None,
        stopped: threading.Event | None = None,
    ) -> Iterator[T]:
        """Runs a loop with a `cancelled` that hears cancel(), close(), the clock, and `stopped`."""

        def begin(cancelled: Callable[[], bool]) -> Iterator[T]:
            self._engines.check_open()
            return start(cancelled)

        return self._calls.run(begin, timeout_s, stopped)

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

    def run(
        self,
        start: Callable[[Callable[[], bool]], Iterator[T]],
        timeout_s: float | None,
        stopped: threading.Event | None = None,
    ) -> Iterator[T]:
        """The loop that `start` makes, given a `cancelled` that hears cancel(), `stopped` and the clock.

        Time counts from now.
        """
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"timeout_s is {timeout_s}, expected above 0")
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        return self._run(start, deadline, stopped or threading.Event())

    def _run(
        self, start: Callable[[Callable[[], bool]], Iterator[T]], deadline: float, cancel: threading.Event
    ) -> Iterator[T]:
        with self._lock:
            self._running.add(cancel)
        try:
            yield from start(lambda: cancel.is_set() or time.monotonic() >= deadline)
        finally:
            with self._lock:
                self._running.discard(cancel)
