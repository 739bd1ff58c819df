"""A conversation that keeps its K/V cache between turns: only what is new is read.

It knows turns and what the cache holds of them; sampling and stepping are in text_loop.py, slots in kv_cache.py.  The
conversation is what the model really read and wrote, token for token: a reply that was cut stays as far as it came.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.chat import Message, turn_prompt
from edgemm.bundle.picture import PictureSources
from edgemm.bundle.prompt import Prompt
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.options import check_type, from_keywords
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.text import TextGenerator
from edgemm.runtimes.text_call import Prompted, TextChunk, TextKeywords, TextOptions, TextResult
from edgemm.runtimes.text_loop import Clock, TextRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Alone", "Session"]

Cancelled = Callable[[], bool]
Call = Callable[[Callable[[Cancelled], Iterator[TextChunk]], "float | None"], Iterator[TextChunk]]  # Model.call


@dataclass(frozen=True)
class _Place:
    """How far a conversation had come."""

    used: int = 0  # slots
    unread: tuple[int, ...] = ()  # written by the model, not in the cache yet
    history: tuple[int, ...] = ()  # every text id
    messages: tuple[Message, ...] = ()


@dataclass(eq=False)
class Session:
    """One conversation with a model; made by Model.session().

    One reply at a time: another call while one is being written is refused; fork() for a second line of thought.
    Different sessions may be used from different threads.
    """

    _generator: TextGenerator
    _call: Call
    _system: tuple[Message, ...] = ()  # a system message, or nothing
    _transformer: CachedTransformer | None = None
    _place: _Place = field(default_factory=_Place)
    _earlier: list[_Place] = field(default_factory=list)  # before each turn
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def generate_text(
        self, prompt: Prompted, images: PictureSources = (), **options: Unpack[TextKeywords]
    ) -> TextResult:
        """The reply to the next message; `prompt`, `images` and `options` are those of Model.stream_text.

        A session may begin with a list of messages; later turns are one message each.
        """
        return self._whole(prompt, images, from_keywords(TextOptions, "generate_text()", options, ("images",)))

    def stream_text(
        self, prompt: Prompted, images: PictureSources = (), **options: Unpack[TextKeywords]
    ) -> Iterator[TextChunk]:
        """The reply to the next message in pieces; see Model.stream_text."""
        return self._stream(prompt, images, from_keywords(TextOptions, "stream_text()", options, ("images",)))

    def _whole(self, prompt: Prompted, images: PictureSources, options: TextOptions) -> TextResult:
        for chunk in self._stream(prompt, images, options):
            if chunk.result is not None:
                return chunk.result
        raise EdgemmError("the reply ended without a result")

    def _stream(self, prompt: Prompted, images: PictureSources, options: TextOptions) -> Iterator[TextChunk]:
        generator, clock = self._generator, Clock()
        messages = generator.with_video(generator.messages(prompt, images, options), options)
        request, pictures = self._request(messages, options)
        place = self._place
        return self._call(
            lambda cancelled: self._turn(place, request, pictures, messages, cancelled, clock), options.timeout_s
        )

    @property
    def tokens(self) -> int:
        """How many the conversation holds, pictures included."""
        return self._place.used + len(self._place.unread)

    @property
    def room(self) -> int:
        """How many more it can hold."""
        return self._generator.manifest.limits.max_context - self.tokens

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said, as Model.generate_text takes it: a graph in words, its pictures before them."""
        said = (*self._system, *self._place.messages)
        return [{"role": m.role, "content": m.in_words, "images": list(m.images)} for m in said]

    def fork(self) -> Session:
        """A conversation that begins where this one stands and goes its own way, in memory of its own."""
        with self._alone():
            twin = None if self._transformer is None else self._transformer.fork()
            return Session(self._generator, self._call, self._system, twin, self._place, list(self._earlier))

    def rewind(self, turns: int = 1) -> None:
        """Takes back the last questions and their replies; nothing is computed."""
        check_type("turns", turns, int)
        if not 1 <= turns <= len(self._earlier):
            raise UsageError(f"turns is {turns}, expected 1 to {len(self._earlier)}, the turns of this session")
        with self._alone():
            self._return_to(self._earlier[-turns])
            del self._earlier[-turns:]

    def close(self) -> None:
        """Gives the memory back; the conversation starts anew if it is used again."""
        with self._alone():
            self._transformer, self._place, self._earlier = None, _Place(), []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, messages: tuple[Message, ...], options: TextOptions) -> tuple[TextRequest, list[np.ndarray]]:
        generator = self._generator
        loop = generator.loop
        generator.check_open()
        if self._place.used:
            if len(messages) != 1 or messages[0].role != "user":
                raise UsageError("the session has begun, expected the next message and not a list of them")
            generator.check_pictures(messages)
            prompt = turn_prompt(messages[0], self._place.unread, loop, generator.tokenizer)
        else:
            if self._system and messages[0].role == "system":
                raise UsageError("the session has a system message, and messages[0] is another: leave one of them out")
            prompt = generator.prompt((*self._system, *messages))
        self._check_room(prompt)
        return generator.request_of(prompt, options, self._place.history), generator.pictures(messages)

    def _check_room(self, prompt: Prompt) -> None:
        most = self._generator.manifest.limits.max_context
        if self._place.used + len(prompt) > most:
            after = f" after {self._place.used}; rewind() or begin another session" if self._place.used else ""
            raise InputError(f"the prompt takes {len(prompt)} tokens, this bundle holds at most {most}{after}")

    def _turn(
        self,
        place: _Place,
        request: TextRequest,
        pictures: list[np.ndarray],
        messages: tuple[Message, ...],
        cancelled: Callable[[], bool],
        clock: Clock,
    ) -> Iterator[TextChunk]:
        ids: list[int] = []
        texts: list[str] = []
        generator = self._generator
        with self._alone():
            if self._place is not place:
                raise UsageError("the session has moved on since this reply was asked for; ask again")
            if self._transformer is None:
                self._transformer = generator.timed_conversation(clock)
            try:
                prompt, image_tokens = generator.read_pictures(request.prompt, pictures, clock)
                request = replace(request, prompt=prompt)
                for chunk in generator.write(request, image_tokens, cancelled, clock, self._transformer):
                    ids += chunk.token_ids
                    texts.append(chunk.text)
                    yield chunk
            except EdgemmError:
                self._return_to(place)
                self._transformer.clear_row(0, place.used)
                raise
            finally:
                read = self._transformer.cache.used - place.used
                if read:  # else nothing happened: cancelled before it began, or an error
                    reply = Message("assistant", "".join(texts))
                    self._earlier.append(place)
                    self._place = _Place(
                        place.used + read,
                        tuple(ids[read - len(request.prompt) :]),
                        (*place.history, *request.prompt.text_ids[len(place.unread) :], *ids),
                        (*place.messages, *messages, reply),
                    )

    def _return_to(self, place: _Place) -> None:
        self._place = place
        if self._transformer is not None:
            self._transformer.rewind(place.used)

    def _alone(self) -> Alone:
        return Alone(self._busy, "this session is writing a reply; wait for its end, or fork() before you ask")


class Alone:
    """Holds a conversation for one caller; a second one is refused with what is `said`, not made to wait."""

    def __init__(self, lock: threading.Lock, said: str) -> None:
        self._lock, self._said = lock, said

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError(self._said)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
