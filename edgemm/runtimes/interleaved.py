"""Text and pictures in one reply: what the model writes between two marks is drawn, and it reads what was drawn.

    Here is your heart: <draw>a red heart</draw> Do you like it?

The marks are taken out of the text; the picture goes back into the conversation as clean image tokens, and the reply
goes on.  Whether a model uses the marks by itself is a matter of its training; `grammar` makes any model use them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgemm.bundle.chat import picture_in_reply
from edgemm.bundle.prompt import Prompt
from edgemm.errors import UsageError
from edgemm.runtimes.constraint import StopStrings, overlap
from edgemm.runtimes.draw import ImageGenerator
from edgemm.runtimes.image_call import DenoiseProgress, DrawingOptions, ImageResult, Picture
from edgemm.runtimes.kv_cache import pieces_of
from edgemm.runtimes.sampling import Sampling
from edgemm.runtimes.text import TextGenerator
from edgemm.runtimes.text_call import DRAW_MARKS, FinishReason, TextChunk, TextResult, clipped
from edgemm.runtimes.text_loop import Clock, TextRequest

__all__ = ["Drawing", "InterleavedResult", "MarkedText", "check_marks", "write_interleaved"]


@dataclass(frozen=True, eq=False)
class InterleavedResult:
    """One reply, in its order."""

    parts: tuple[str | Picture, ...]
    prompts: tuple[str, ...]  # what each picture was drawn from
    token_ids: tuple[int, ...]  # of the text, marks included
    finish_reason: FinishReason
    seed: int | None = None  # what makes this reply come again; None when nothing was drawn at random

    def __repr__(self) -> str:
        parts = ", ".join(clipped(part) if isinstance(part, str) else repr(part) for part in self.parts)
        return f"InterleavedResult([{parts}], finish_reason={self.finish_reason!r})"

    @property
    def text(self) -> str:
        """All that was said, without the pictures and the marks around their prompts."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Picture, ...]:
        """All that was drawn, in its order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


class MarkedText:
    """Text in, text out, up to the start mark; what follows it is the prompt of a picture."""

    def __init__(self, start_mark: str) -> None:
        self._start_mark = start_mark
        self._held = ""
        self.prompt: str | None = None  # None as long as there was no mark

    def push(self, text: str) -> str:
        """What is safe to show now."""
        if self.prompt is not None:
            self.prompt += text
            return ""
        before, mark, after = (self._held + text).partition(self._start_mark)
        self._held = ""
        if mark:
            self.prompt = after
            return before
        held = overlap(before, self._start_mark)
        self._held = before[len(before) - held :]
        return before[: len(before) - held]

    def flush(self) -> str:
        """What was held back and was no mark after all."""
        held, self._held = self._held, ""
        return held


@dataclass(frozen=True)
class Drawing:
    """When a picture is drawn in between, and how."""

    marks: tuple[str, str]  # around what is drawn
    max_images: int
    options: DrawingOptions

    def __post_init__(self) -> None:
        if self.options.num_images != 1:
            raise UsageError(
                f"num_images is {self.options.num_images}, a reply takes one picture at each of its places"
            )
        if self.options.timeout_s is not None:
            raise UsageError("timeout_s of one drawing: give it to generate() itself, for the whole reply")


def write_interleaved(
    text_generator: TextGenerator,
    image_generator: ImageGenerator,
    request: TextRequest,
    pictures: list[np.ndarray],
    drawing: Drawing,
    cancelled: Callable[[], bool],
) -> Iterator[TextChunk | DenoiseProgress | ImageResult | InterleavedResult]:
    """Text chunks, steps and pictures as they come, then the whole reply.

    An empty chunk comes after each piece of a long prompt that was read: whoever asks can do other work between.
    """
    clock, marks, adapter = Clock(), drawing.marks, image_generator.adapter
    transformer = text_generator.timed_conversation(clock)
    seen, image_tokens = text_generator.read_pictures(request.prompt, pictures, clock)
    head, request = _parted(replace(request, prompt=seen))
    for piece in head:
        if cancelled():
            break
        transformer.prefill(piece, image_tokens)
        yield TextChunk((), "")
    seed = request.sampling.seed if request.sampling.temperature else None
    parts: list[str | Picture] = []
    prompts: list[str] = []
    ids: list[int] = []
    left, reason, tail = request.max_new_tokens, None, ""  # tail: what the token that ends a mark says behind it
    while reason is None:
        marked, used = MarkedText(marks[0]), transformer.cache.used
        shown, tail = marked.push(tail), ""
        if shown:
            yield TextChunk((), shown)
        run = replace(request, max_new_tokens=left, stop=(*request.stop, marks[1]))
        chunks = text_generator.write(run, image_tokens, cancelled, clock, transformer)
        written, more, result = yield from _up_to_mark(chunks, marked)
        ids += written
        parts += [shown + more] if shown or more else []
        left -= len(written)
        prompt = (marked.prompt or "").strip()
        if result.finish_reason != "stop" or not prompt or marks[1] not in text_generator.tokenizer.decode(written):
            reason = result.finish_reason
            break
        picture, ended = yield from _picture_of(image_generator.start(prompt, drawing.options, adapter)(cancelled))
        if picture is None:
            reason = "cancelled"
            break
        parts.append(picture)
        prompts.append(prompt)
        stops = StopStrings(request.stop)
        tail = stops.push(text_generator.tokenizer.decode(written).partition(marks[1])[2]) + stops.flush()
        reason = ended or ("stop" if stops.hit else None)
        read = transformer.cache.used - used - len(request.prompt)
        again = picture_in_reply(written[read:], text_generator.loop, text_generator.tokenizer)
        room = text_generator.manifest.limits.max_context - transformer.cache.used
        if reason is None and request.constraint and request.constraint.complete:
            reason = "stop"
        elif reason is None and (left < 1 or len(prompts) >= drawing.max_images or len(again) > room):
            reason = "length"
        history = (*request.history, *request.prompt.text_ids, *written)
        again, image_tokens = text_generator.read_pictures(again, [text_generator.picture(picture.to_array())], clock)
        request = replace(request, prompt=again, history=history, sampling=_after(request.sampling, len(prompts)))
    if tail:  # nothing was written after it
        parts.append(tail)
        yield TextChunk((), tail)
    yield InterleavedResult(tuple(parts), tuple(prompts), tuple(ids), reason, seed)


def _up_to_mark(
    chunks: Iterator[TextChunk], marked: MarkedText
) -> Generator[TextChunk, None, tuple[list[int], str, TextResult]]:
    """Shows what stands before the mark; gives back all tokens, what was shown, and the result."""
    written, shown = [], ""
    result: TextResult | None = None
    for chunk in chunks:
        written += chunk.token_ids
        text = marked.push(chunk.text) + (marked.flush() if chunk.finished else "")
        shown += text
        result = chunk.result
        if text or chunk.token_ids:
            yield TextChunk(chunk.token_ids, text, logprobs=chunk.logprobs)
    assert result is not None  # an error would have been raised
    return written, shown, result


def _picture_of(
    events: Iterator[DenoiseProgress | ImageResult],
) -> Generator[DenoiseProgress | ImageResult, None, tuple[Picture | None, FinishReason | None]]:
    """Passes a drawing's events on; gives back the picture, if one was begun, and why it is not finished, if so."""
    picture, ended = None, None
    for event in events:
        yield event
        if isinstance(event, ImageResult) and event.images:
            picture = event.images[0]
            if event.finish_reason != "stop":
                ended = event.finish_reason
    return picture, ended


def _after(sampling: Sampling, pictures: int) -> Sampling:
    """Random numbers of their own for what follows a picture: those before it are not drawn again."""
    if sampling.seed is None:
        return sampling
    seed = np.random.SeedSequence((sampling.seed, pictures)).generate_state(1, np.uint64)[0]
    return replace(sampling, seed=int(seed))


def _parted(request: TextRequest) -> tuple[list[Prompt], TextRequest]:
    """All pieces of a long prompt but the last, each for what has read those before it; and the request then left."""
    prompt = request.prompt
    *head, last = [
        Prompt(
            prompt.input_ids[piece],
            prompt.image_index[piece],
            prompt.attention_limit[piece] - piece.start,
            prompt.users_own[piece],
        )
        for piece in pieces_of(prompt)
    ]
    said = [token for piece in head for token in piece.text_ids]
    return head, replace(request, prompt=last, history=(*request.history, *said))


def check_marks(marks: tuple[str, str]) -> tuple[str, str]:
    """Two different strings that are not empty."""
    good = isinstance(marks, (tuple, list)) and len(marks) == 2 and all(isinstance(m, str) and m for m in marks)
    if not good or marks[0] == marks[1]:
        raise UsageError(f"draw_marks is {marks!r}, expected two different strings, as {DRAW_MARKS}")
    return marks
