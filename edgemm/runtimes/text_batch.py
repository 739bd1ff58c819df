"""Continuous batching: replies that are written side by side, and which join and leave between two steps.

One run of the transformer gives every reply its next token (iteration-level scheduling: Yu et al., Orca, OSDI 2022).
Each has a row of one K/V cache.  Rows that are being written come first, so that a step runs over no more than those;
the prompt that is being read has the row after them, and is read in pieces between their steps.  A row that ends gives
its place to the last.  Rows never see one another, so each reply is the one that its prompt gets alone, up to rounding
in the last bit where a product of one row is computed by another kernel than a product of many.

It knows ids and rows, never strings, threads or who listens.   Axes: b rows, T cache slots, v vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgemm.bundle.prompt import Prompt, Tokenizer
from edgemm.errors import EdgemmError
from edgemm.runtimes.backend.engine import check_finite
from edgemm.runtimes.kv_cache import CachedTransformer, pieces_of
from edgemm.runtimes.text_call import TextChunk
from edgemm.runtimes.text_loop import Clock, Reply, TextRequest

__all__ = ["Said", "TextBatch", "Writing"]

Seen = tuple[Prompt, "np.ndarray | None"]  # a prompt as the transformer reads it, and the image tokens (1, m, width)


@dataclass(eq=False)
class Writing:
    """One reply in a batch."""

    request: TextRequest
    see: Callable[[Clock], Seen]  # reads its pictures; called once, when its prompt's turn comes
    cancelled: Callable[[], bool]
    clock: Clock
    reply: Reply | None = None
    image_tokens: np.ndarray | None = None
    pieces: deque[slice] | None = None  # of its prompt, not read yet; None before its pictures were seen
    read: int = 0  # slots of its row that hold something
    token: int = 0  # chosen and not read yet

    @property
    def slots(self) -> int:
        """The most that it may come to take."""
        return len(self.request.prompt) + self.request.max_new_tokens


Said = tuple[Writing, "TextChunk | EdgemmError"]  # the last of a reply is finished, or an error


class TextBatch:
    """Replies that are written together; one thread calls it."""

    def __init__(self, conversation: Callable[[int], CachedTransformer], tokenizer: Tokenizer, most: int) -> None:
        """`conversation` makes a transformer with so many rows; at most `most` replies are there at once."""
        self._conversation, self._tokenizer, self._most = conversation, tokenizer, most
        self._written: list[Writing] = []  # by their rows
        self._unread: deque[Writing] = deque()  # the first has the row after those, once it has begun to be read
        self._transformer: CachedTransformer | None = None
        self._stepped = True  # whether the last turn was a step: prompts and steps take turns

    def __len__(self) -> int:
        return len(self._written) + len(self._unread)

    @property
    def full(self) -> bool:
        return len(self) >= self._most

    def add(self, writing: Writing) -> None:
        """One more reply, in the next turns; ask `full` and `fits` first."""
        self._unread.append(writing)

    def fits(self, writing: Writing) -> bool:
        """Whether the memory limit holds it beside the others to its end; alone it may always try."""
        if not len(self) or self._transformer is None:
            return not len(self)
        rows = [*self._written, *self._unread, writing]
        cache = self._transformer.cache
        slots = min(max(each.slots for each in rows), cache.max_slots)
        return cache.could_hold(_capacity(len(rows), self._most), slots)

    def turn(self, together: bool = False) -> list[Said]:
        """The next piece of a prompt, or the next token of every reply that is being written, by turns.

        `together` reads every prompt first: sooner done, where nobody listens to the first tokens.
        """
        if self._unread and (together or self._stepped or not self._written):
            self._stepped = False
            return self._read()
        self._stepped = True
        return self._step() if self._written else []

    def drop(self, writing: Writing) -> None:
        """Forgets a reply; the others do not notice."""
        if writing in self._written:
            self._leave(writing)
        elif writing in self._unread:
            self._unread.remove(writing)
        self._shrink()

    def _read(self) -> list[Said]:
        writing = self._unread[0]
        try:
            if writing.cancelled():
                writing.reply = writing.reply or Reply(writing.request, self._tokenizer)
                return [self._end(writing, "cancelled")]
            if writing.pieces is None:
                prompt, writing.image_tokens = writing.see(writing.clock)
                writing.request = replace(writing.request, prompt=prompt)
                writing.reply = Reply(writing.request, self._tokenizer)
                writing.pieces = deque(pieces_of(prompt))
                if writing.image_tokens is not None:
                    return []  # pictures are a turn of their own
            start = time.perf_counter()
            self._read_piece(writing, writing.pieces.popleft())
            writing.clock.prefill_s += time.perf_counter() - start
            return [] if writing.pieces else self._begin(writing)
        except EdgemmError as error:
            if self._transformer is not None and writing.read:
                self._transformer.clear_row(len(self._written))
            self.drop(writing)
            return [(writing, error)]

    def _read_piece(self, writing: Writing, piece: slice) -> None:
        row, prompt = len(self._written), writing.request.prompt
        transformer = self._room(row + 1, len(prompt))
        transformer.lengths[row] = 0
        transformer.read_piece(prompt, piece, writing.image_tokens, row)
        writing.read = piece.stop
        transformer.cache.used = max(transformer.cache.used, piece.stop)

    def _begin(self, writing: Writing) -> list[Said]:
        """A prompt is read: its reply has its first token, and a row among those that are written."""
        assert self._transformer is not None
        self._unread.popleft()
        row = len(self._written)
        self._written.append(writing)
        self._transformer.begin_row(row, writing.read)
        writing.clock.first_token_s = writing.clock.since_began()
        return self._choose([row])

    def _step(self) -> list[Said]:
        transformer, rows = self._transformer, list(range(len(self._written)))
        assert transformer is not None
        start, failed = time.perf_counter(), {}
        try:
            transformer.step_rows(np.array([each.token for each in self._written]), rows=len(rows), check=False)
        except EdgemmError:
            failed = self._step_alone()
        took, good = time.perf_counter() - start, [each for each in self._written if each not in failed]
        for each in good:
            each.read += 1
            each.clock.decode_s += took
            each.clock.decode_steps += 1
        said = self._choose([row for row in rows if self._written[row] in good])
        for writing, error in failed.items():
            self._forget(writing)
            said.append((writing, error))
        self._shrink()
        return said

    def _step_alone(self) -> dict[Writing, EdgemmError]:
        """Each row by itself, after the run of all has failed: who is to blame, and nobody else."""
        assert self._transformer is not None
        failed = {}
        for row, writing in enumerate(self._written):
            try:
                self._transformer.step_row(row, writing.token)
            except EdgemmError as error:
                failed[writing] = error
        return failed

    def _choose(self, rows: list[int]) -> list[Said]:
        """The next token of each of these rows, from its logits."""
        said: list[Said] = []
        transformer = self._transformer
        assert transformer is not None
        for writing, logits in [(self._written[row], transformer.logits[row]) for row in rows]:
            reply = writing.reply
            assert reply is not None
            try:
                if writing.cancelled():
                    said.append(self._end(writing, "cancelled"))
                    continue
                check_finite(_sayable(logits), f"transformer, logits after {writing.read} tokens")
                writing.token = reply.choose(logits)
                chunk = reply.add(writing.token, logits)
                if chunk is not None:
                    said.append((writing, chunk))
                if reply.reason is None and not transformer.cache.has_room(writing.read + 1):
                    reply.reason = "length"
                if reply.reason is not None:
                    said.append(self._end(writing, reply.reason))
            except EdgemmError as error:
                said.append((writing, error))
                self._forget(writing)
        self._shrink()
        return said

    def _forget(self, writing: Writing) -> None:
        """Its numbers went wrong."""
        assert self._transformer is not None
        self._transformer.clear_row(self._written.index(writing))
        self._leave(writing)

    def _end(self, writing: Writing, reason: str) -> Said:
        reply = writing.reply
        assert reply is not None
        reply.reason = reason  # type: ignore[assignment]
        if writing in self._written:
            self._leave(writing)
        else:
            self._unread.remove(writing)
        return writing, reply.end(writing.clock)

    # Rows

    def _leave(self, writing: Writing) -> None:
        """The last row takes the place of this one, and the prompt that is being read the place of the last."""
        row, last = self._written.index(writing), len(self._written) - 1
        transformer = self._transformer
        assert transformer is not None
        if row != last:
            transformer.move_row(last, row, self._written[last].read)
            self._written[row] = self._written[last]
        self._written.pop()
        if self._unread and self._unread[0].read:
            transformer.move_row(last + 1, last, self._unread[0].read)

    def _room(self, rows: int, slots: int) -> CachedTransformer:
        """A transformer with so many rows, and room for so much in each."""
        if self._transformer is None:
            self._transformer = self._conversation(_capacity(rows, self._most))
        elif rows > len(self._transformer.lengths):
            cache = self._transformer.cache
            self._transformer = self._transformer.with_rows(_capacity(rows, self._most), max(slots, cache.slots))
        self._transformer.reserve(slots)
        return self._transformer

    def _shrink(self) -> None:
        """Gives memory back once half of it would do; nothing is kept for nobody."""
        transformer = self._transformer
        if transformer is None:
            return
        busy = [*self._written, *(each for each in self._unread if each.read)]
        if not busy:
            self._transformer = None
            return
        rows = _capacity(len(busy), self._most)
        slots = max(len(each.request.prompt) if each in self._unread else each.read + 1 for each in busy)
        if 2 * rows < len(transformer.lengths) or 2 * slots + transformer.cache.block < transformer.cache.slots:
            self._transformer = transformer.with_rows(rows, slots)


def _capacity(rows: int, most: int) -> int:
    """Rows to make room for: the next power of two, so that growing is rare."""
    return min(1 << (rows - 1).bit_length(), most)


def _sayable(logits: np.ndarray) -> np.ndarray:
    """Without what is never to be said: its logits are -inf on purpose."""
    return logits[logits != -np.inf]
