"""A stream of pictures, watched for hours in constant memory: the last frames in a K/V cache, a log of words beside it.

    slots   [instruction][frame][frame] ... [notes and question, while one is asked]

A new frame is read behind the others.  When the window is full the oldest one goes (of models that read motion a
keyframe and all that follows from it), the others move down, and their
keys are turned back by as many positions (a rotary key is turned by its position alone, arXiv:2104.09864), as
StreamingVLM does (arXiv:2510.09608); the instruction in front stays (attention sinks, arXiv:2309.17453).  What a
frame's keys and values took in from frames that are gone stays in them, so a reply may differ from one that reads the
window anew, which `reread` does.  Models whose keys cannot be turned so, or that read a conversation as one string, are
always read anew.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgemm.bundle.chat import Message, chat_prompt
from edgemm.bundle.manifest import MovedFrame
from edgemm.bundle.picture import PictureSource
from edgemm.bundle.prompt import PictureTokens, Prompt, PromptBuilder
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.options import check_type, from_keywords
from edgemm.runtimes.image_call import check_whole
from edgemm.runtimes.session import Alone
from edgemm.runtimes.text import TextGenerator
from edgemm.runtimes.text_call import TextChunk, TextKeywords, TextOptions, TextResult
from edgemm.runtimes.text_loop import Clock

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgemm.runtimes.kv_cache import CachedTransformer

__all__ = ["Watch", "WatchEvent", "WatchOptions"]

Call = Callable[[Callable[[Callable[[], bool]], Iterator[TextChunk]], "float | None"], Iterator[TextChunk]]
MOST_EVENTS = 1000  # the log keeps the last ones
MOST_WINDOW = 1024
ROOM = 32  # slots for a question and its reply, at least


@dataclass(frozen=True)
class WatchEvent:
    """Something new: what the model said of the instruction, where that was not what it said before."""

    t: float  # the frame's own time
    text: str


@dataclass(frozen=True)
class WatchOptions:
    """How a stream is watched."""

    window: int = 16  # frames that are remembered as pictures
    every: int = 0  # frames after which the instruction is asked again; 0: only `ask` asks
    notes: int = 4  # of the last events, which stand before a question
    reread: bool = False  # read the whole window anew at every question

    def __post_init__(self) -> None:
        check_whole("window", self.window, 1, MOST_WINDOW)
        check_whole("every", self.every, 0, 10**9)
        check_whole("notes", self.notes, 0, 64)


class Watch:
    """One stream; made by Model.watch().  Use it as a context manager, or close() it.

    One caller at a time: another one, of a second thread, is refused.
    """

    def __init__(
        self, generator: TextGenerator, call: Call, instruction: str, how: WatchOptions, options: TextOptions
    ) -> None:
        check_type("instruction", instruction, str)
        _check_options(options)
        if how.every and not instruction.strip():
            raise UsageError(f"every is {how.every}: so often the instruction is asked, and there is none")
        generator.check_open()
        generator.reader.check()
        self.how, self.instruction, self._options = how, instruction, options
        self._generator, self._call = generator, call
        self._events: deque[WatchEvent] = deque(maxlen=MOST_EVENTS)
        self._squares: list[np.ndarray] = []  # of the window, where it is read anew; else the last
        self._pushed, self._now, self._closed = 0, 0.0, False
        motion = generator.loop.motion
        self._group = min(motion.every, how.window) if motion else 1  # frames that go at once
        self._rows = self._rows_of(how.window)
        self._sink = self._before()
        self._check_room(len(self._sink) + self._rows + ROOM)
        self._transformer: CachedTransformer | None = None
        self._kept, self._busy = 0, threading.Lock()

    @property
    def events(self) -> tuple[WatchEvent, ...]:
        """The last MOST_EVENTS of them."""
        return tuple(self._events)

    @property
    def turns(self) -> bool:
        """Whether frames stay in the cache; else the window is read anew at every question."""
        loop = self._generator.loop
        return not self.how.reread and loop.rope_theta is not None and not loop.joined and self._turnable()

    @property
    def frames(self) -> int:
        """How many are in the window."""
        return self._kept

    def push(self, frame: PictureSource, t: float | None = None) -> WatchEvent | None:
        """Reads one more frame, shown at time `t` (seconds; without it frames count); the event it was, if it was one.

        `frame` is a picture as generate_text takes it, an array (H, W, 3) uint8 for example.  A reply that was cut off,
        by the clock or by cancel(), is no event.
        """
        with self._alone():
            return self._push(frame, t)

    def _push(self, frame: PictureSource, t: float | None) -> WatchEvent | None:
        self._check_open()
        check_type("t", t, float | None)
        now = float(self._pushed) if t is None else float(t)
        if not np.isfinite(now) or (self._pushed and now < self._now):
            raise UsageError(f"t is {t!r}, expected a number that is not before the last frame's, {self._now:g}")
        square = self._generator.picture(frame)
        if self._kept == self.how.window:
            self._forget()
        if self.turns:
            self._read(square)
        else:
            self._squares.append(square)
        self._kept += 1
        self._now, self._pushed = now, self._pushed + 1
        if not self.how.every or self._pushed % self.how.every:
            return None
        reply = self._ask(self.instruction, self._options)
        said = reply.text.strip()
        if reply.finish_reason == "cancelled" or (self._events and said == self._events[-1].text):
            return None
        self._events.append(WatchEvent(now, said))
        return self._events[-1]

    def ask(self, question: str, **options: Unpack[TextKeywords]) -> TextResult:
        """A reply about the frames in the window; `options` are TextOptions' fields, over those of watch().

        Nothing of it stays in the cache.
        """
        chosen = from_keywords(TextOptions, "ask()", options, over=self._options)
        _check_options(chosen)
        with self._alone():
            return self._ask(question, chosen)

    def _ask(self, question: str, chosen: TextOptions) -> TextResult:
        self._check_open()
        if not isinstance(question, str) or not question.strip():
            raise UsageError("question is empty, expected some text")
        for chunk in self._call(lambda cancelled: self._reply(question, chosen, cancelled), chosen.timeout_s):
            if chunk.result is not None:
                return chunk.result
        raise EdgemmError("the reply ended without a result")

    def close(self) -> None:
        """Gives the memory back; a closed stream takes no more frames."""
        with self._alone():
            self._transformer, self._closed = None, True
            self._squares.clear()

    def _alone(self) -> Alone:
        return Alone(self._busy, "this stream reads a frame or writes a reply; wait for its end")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Frames in the cache

    def _forget(self) -> None:
        """The oldest frame of the window goes, or the oldest keyframe and what follows from it."""
        if self.turns:
            theta = self._generator.loop.rope_theta
            assert theta is not None
            self._conversation().drop(len(self._sink), self._rows_of(self._group), theta)
        else:
            del self._squares[: self._group]
        self._kept -= self._group

    def _read(self, square: np.ndarray) -> None:
        shown = MovedFrame(square, self._squares[0]) if self._kept % self._group else square
        prompt = self._pictures([shown]).build()
        prompt, tokens = self._generator.reader.read(prompt, _stacked([shown]), self._generator.loop)
        self._conversation().prefill(prompt, tokens)
        self._squares = [square]

    def _rows_of(self, frames: int) -> int:
        """Slots that so many frames take, from a keyframe on."""
        return len(self._pictures(self._generator.loop.clip((None,) * frames)).build())

    def _conversation(self) -> CachedTransformer:
        """The cache, with the instruction in it."""
        if self._transformer is None:
            self._transformer = self._generator.conversation()
            self._transformer.reserve(len(self._sink) + self._rows + ROOM)
            if self.turns and len(self._sink):
                self._transformer.prefill(self._sink)
        return self._transformer

    def _turnable(self) -> bool:
        inputs = self._generator.cache_inputs
        return bool(inputs) and all(np.issubdtype(spec.dtype, np.floating) for spec in inputs)

    # Questions

    def _reply(self, question: str, options: TextOptions, cancelled: Callable[[], bool]) -> Iterator[TextChunk]:
        clock, transformer = Clock(), self._conversation()
        if self.turns:
            used, tokens = transformer.cache.used, None
            prompt = self._fitting(lambda asked: self._after(asked).build(), question, used)
        else:
            transformer.rewind(0)
            used, shown = 0, self._generator.loop.clip(self._squares)
            prompt = self._fitting(self._whole, question, used)
            prompt, tokens = self._generator.read_pictures(prompt, _stacked(shown), clock)
        request = self._generator.request_of(prompt, options)
        try:
            yield from self._generator.write(request, tokens, cancelled, clock, transformer)
        finally:
            transformer.rewind(used)

    def _whole(self, question: str) -> Prompt:
        """All of the window, to be read anew."""
        loop, tokenizer = self._generator.loop, self._generator.tokenizer
        if loop.joined:
            said = "\n".join(filter(None, (self.instruction, question)))
            return chat_prompt((Message("user", said, (None,) * self.frames),), loop, tokenizer)
        builder = PromptBuilder(tokenizer)
        self._open(builder)
        self._pictures(loop.clip((None,) * self.frames), builder)
        return self._after(question, builder).build()

    def _pictures(self, shown: Sequence[object], builder: PromptBuilder | None = None) -> PromptBuilder:
        builder = builder or PromptBuilder(self._generator.tokenizer)
        for picture in shown:
            builder.picture(PictureTokens.of(self._generator.loop, picture))
        return builder

    def _before(self) -> Prompt:
        builder = PromptBuilder(self._generator.tokenizer)
        if not self._generator.loop.joined:
            self._open(builder)
        return builder.build()

    def _open(self, builder: PromptBuilder) -> None:
        """What stands before the frames: nothing but the template's own, without an instruction."""
        loop, said = self._generator.loop, self.instruction
        template, alone = loop.template, bool(loop.template.takes_system and loop.template.system_open)
        system = said if said and alone else template.system_default
        if system:
            builder.text(template.system_open)
            builder.text(system, own=system is said)
            builder.text(template.system_close)
        if not loop.block:
            builder.text(template.user_open)
        if said and not alone:
            builder.text(f"{said}\n", own=True)

    def _after(self, question: str, builder: PromptBuilder | None = None) -> PromptBuilder:
        """What stands behind the frames."""
        loop = self._generator.loop
        builder = builder or PromptBuilder(self._generator.tokenizer)
        if self.frames:
            builder.text(loop.image_close)
        if loop.block:
            builder.text(loop.template.user_open)
        builder.text(question, own=True)
        builder.text(loop.template.user_close)
        builder.text(loop.template.assistant_open)
        return builder

    def _noted(self, question: str, notes: int) -> str:
        noted = list(self._events)[-notes:] if notes else []
        return "\n".join([*(f"{event.t:g} s: {event.text}" for event in noted), question])

    def _fitting(self, prompt_of: Callable[[str], Prompt], question: str, used: int) -> Prompt:
        """The question with as many notes as there is room for: a stream of hours must not end at a long one."""
        for notes in range(self.how.notes, -1, -1):
            prompt = prompt_of(self._noted(question, notes))
            if used + len(prompt) < self._generator.manifest.limits.max_context:
                return prompt
        self._check_room(used + len(prompt) + 1)
        return prompt

    # Checks

    def _check_room(self, tokens: int) -> None:
        most = self._generator.manifest.limits.max_context
        if tokens > most:
            raise InputError(
                f"the window takes {tokens} tokens with its question, {self._rows} its frames, this bundle holds at "
                f"most {most}; give a smaller window, or fewer notes"
            )

    def _check_open(self) -> None:
        self._generator.check_open()
        if self._closed:
            raise UsageError("this stream was closed; begin another one: model.watch(...)")


def _check_options(options: TextOptions) -> None:
    """UsageError of what a stream has no place for."""
    if options.video is not None or options.fps is not None:
        raise UsageError("a watched stream is the video: push its frames, and leave video and fps out")
    if options.graph is not None:
        raise UsageError("a watched stream reads no graph: put its to_text() in the instruction or the question")


def _stacked(shown: Sequence[np.ndarray | MovedFrame]) -> list[np.ndarray]:
    """Squares (3, S, S), and those that are read by what moved with the one before, (2, 3, S, S)."""
    return [np.stack((one.frame, one.previous)) if isinstance(one, MovedFrame) else one for one in shown]
