"""The transformer and its K/V cache: read prompts, then one token at a time; fork it, rewind it.

The only place that knows slots.  The buffers are static and the graph writes them in place (the same memory is bound as
past and as present); when they are full they are copied into larger ones, a block at a time, up to the bundle's limit.
Several rows go on side by side, each from its own length: a shorter prompt is padded, and what its padding left in the
cache is overwritten before anything may look at it.
Axes: b batch (rows), s new tokens, T cache slots, m image tokens, g K/V heads, d head width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgemm.bundle.prompt import Prompt
from edgemm.errors import InputError
from edgemm.runtimes.backend.engine import Arrays, Binding, Engine, allocator, check_finite

if TYPE_CHECKING:
    from edgemm.runtimes.cache_budget import CacheBudget

__all__ = ["BLOCK", "CachedTransformer", "KVCache", "PrefillCancelled", "pieces_of", "turned"]

BLOCK = 256  # slots a cache grows by
PIECE = 256  # tokens of a prompt that one run reads; 512 in two take as long as in one


class KVCache:
    """Zeroed K/V buffers (b, g, T, d), one a layer, named as the graph's past inputs."""

    def __init__(
        self, engine: Engine, max_slots: int, block: int = BLOCK, budget: CacheBudget | None = None, rows: int = 1
    ) -> None:
        self.rows, self._zeros = rows, allocator(engine)
        self.specs = {name: spec for name, spec in engine.inputs.items() if name.startswith("past_")}
        sizes = {spec.shape[2] for spec in self.specs.values() if isinstance(spec.shape[2], int)}
        self.max_slots = min([max_slots, *sizes])
        self.block = self.max_slots if sizes else block  # a graph of one fixed size starts with it
        self.budget = budget
        self.used = 0
        self.slots = 0
        self.buffers: dict[str, np.ndarray] = {}
        self._lease = budget and budget.lease(self)  # gives its bytes back when the cache is gone

    def reserve(self, slots: int) -> bool:
        """Makes room for so many slots in all; True when the buffers are new, so bindings to the old ones are void."""
        if slots <= self.slots:
            return False
        wanted = self._rounded(slots)
        if self._lease:
            self._lease.grow(wanted * self.slot_bytes)
        self.slots = wanted
        old, self.buffers = self.buffers, {}
        for name, spec in self.specs.items():
            heads, width = spec.fixed(1, "K/V heads"), spec.fixed(3, "head width")
            self.buffers[name] = self._zeros((self.rows, heads, self.slots, width), spec.dtype)
            if name in old:
                self.buffers[name][:, :, : self.used] = old.pop(name)[:, :, : self.used]
        return True

    def resize(self, rows: int, slots: int) -> None:
        """Another number of rows, of so many slots at least, with what the first ones hold."""
        wanted = self._rounded(slots)
        if self._lease:
            self._lease.grow(wanted * self.slot_bytes // self.rows * rows)
        kept, self.rows, self.slots = min(rows, self.rows), rows, wanted
        self.used = min(self.used, wanted)
        for name, old in list(self.buffers.items()):
            _, heads, _, width = old.shape
            self.buffers[name] = self._zeros((rows, heads, wanted, width), old.dtype)
            self.buffers[name][:kept, :, : self.used] = old[:kept, :, : self.used]

    def drop(self, first: int, count: int, theta: float) -> None:
        """Forgets slots first to first + count; those behind them move down, and their keys are turned back."""
        end, moved = first + count, self.used - count
        for name, buffer in self.buffers.items():
            rest = buffer[:, :, end : self.used]
            buffer[:, :, first:moved] = turned(rest, -count, theta) if name.startswith("past_key.") else rest.copy()
        self.used = moved

    def has_room(self, slots: int) -> bool:
        """Whether reserve(slots) would succeed."""
        if slots > self.max_slots:
            return False
        if slots <= self.slots or self._lease is None:
            return True
        return self._lease.can_grow(self._rounded(slots) * self.slot_bytes)

    def could_hold(self, rows: int, slots: int) -> bool:
        """Whether the memory limit allows so many rows of so many slots, in the place of these."""
        return self._lease is None or self._lease.can_grow(self._rounded(slots) * self.slot_bytes // self.rows * rows)

    @property
    def slot_bytes(self) -> int:
        """What one more token a row takes in all layers."""
        return self.rows * sum(
            spec.fixed(1, "K/V heads") * spec.fixed(3, "head width") * np.dtype(spec.dtype).itemsize
            for spec in self.specs.values()
        )

    def copy_of(self, other: KVCache) -> None:
        """Takes over what another cache of the same engine has read."""
        if other.used:
            self.reserve(other.used)
        self.used = other.used
        for name, buffer in self.buffers.items():
            buffer[:, :, : self.used] = other.buffers[name][:, :, : self.used]

    def _rounded(self, slots: int) -> int:
        return min(-(-slots // self.block) * self.block, self.max_slots)

    @property
    def past(self) -> Arrays:
        return self.buffers

    @property
    def present(self) -> Arrays:
        """The same memory under the names of the graph's outputs."""
        return {name.replace("past_", "present_", 1): buffer for name, buffer in self.buffers.items()}


class CachedTransformer:
    """One conversation with the transformer, or several side by side: it remembers what it has read.

    `head` makes logits of its hidden states where the transformer has none of its own; `silent` are token ids that are
    never to be said.
    """

    def __init__(
        self,
        engine: Engine,
        max_context: int,
        block: int = BLOCK,
        head: Engine | None = None,
        rows: int = 1,
        budget: CacheBudget | None = None,
        silent: np.ndarray | None = None,
    ) -> None:
        self.engine = engine
        self._silent = silent
        self.cache = KVCache(engine, max_context, block, budget, rows)
        self._made_with = (engine, max_context, block, head, rows, budget, silent)
        self.lengths = np.zeros(rows, dtype=np.int64)  # tokens read, a row
        said = (head or engine).outputs["logits"]
        self.logits = np.zeros((rows, said.fixed(1, "vocabulary")), dtype=np.float32)
        self._outputs: dict[str, np.ndarray] = {"logits": self.logits}
        self._head = head
        self._more_inputs: dict[str, np.ndarray] = {}  # of a graph that takes candidates, where there are none
        if self.takes_candidates:
            self._outputs["draft_logits"] = np.zeros((rows, 0, self.logits.shape[1]), dtype=np.float32)
            self._more_inputs["draft_index"] = np.zeros((rows, 0), dtype=np.int64)
        if head is not None:
            self._outputs = {"hidden": np.zeros((rows, engine.outputs["hidden"].fixed(1, "width")), dtype=np.float32)}
        width = engine.inputs["image_tokens"].fixed(2, "width")
        self._no_picture = np.zeros((rows, 1, width), dtype=np.float32)
        self._step_inputs = {
            "input_ids": np.zeros((rows, 1), dtype=np.int64),
            "image_tokens": np.zeros((rows, 1, width), dtype=np.float32),
            "image_index": np.full((rows, 1), -1, dtype=np.int64),
            "write_index": np.zeros(rows, dtype=np.int64),
            "attention_limit": np.zeros((rows, 1), dtype=np.int64),
            "logits_index": np.zeros(rows, dtype=np.int64),
            **self._more_inputs,
        }
        self._steps: dict[int, tuple[Binding, Binding | None]] = {}  # by how many rows take part

    @property
    def takes_candidates(self) -> bool:
        """Whether one run can give the logits of several positions."""
        return "draft_index" in self.engine.inputs

    @property
    def full(self) -> bool:
        return not self.cache.has_room(self.cache.used + 1)

    def prefill(
        self,
        prompt: Prompt,
        image_tokens: np.ndarray | None = None,
        slots: int = 0,
        row: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Reads a prompt after what the row has read already, with pictures (1, m, width); its last token's logits (v).

        `slots` asks for that much room at once.  Raises PrefillCancelled between two pieces of a long prompt once
        `cancelled` says so; then nothing of it counts as read.
        """
        cache, first = self.cache, int(self.lengths[row])
        length = first + len(prompt)
        after = f" after {first}" if first else ""
        if length > cache.max_slots:
            raise InputError(
                f"the prompt takes {len(prompt)} tokens{after}, this bundle holds at most {cache.max_slots}"
            )
        self.reserve(max(slots, length))
        for piece in pieces_of(prompt):
            if piece.start and cancelled():
                raise PrefillCancelled
            self.read_piece(prompt, piece, image_tokens, row)
        self.lengths[row] = length
        cache.used = max(cache.used, length)
        return self._said(f"after the prompt of {len(prompt)} tokens{after}", slice(row, row + 1))[row]

    def begin_row(self, row: int, length: int) -> None:
        """A prompt that was read piece by piece counts as read; the caller looks whether its logits are finite."""
        self.lengths[row] = length
        self._said("", slice(row, row + 1), check=False)

    def shrink(self) -> None:
        """Reads a token that does not count, and lets the library give back what larger runs took, where it can."""
        shrinking = getattr(self.engine, "shrinking", None)
        if shrinking and (engine := shrinking()):
            self.reserve(int(self.lengths[0]) + 1)
            token, ones = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32)
            self.read_piece(Prompt(token, token - 1, token, ones), slice(0, 1), None, 0, engine)

    def read_piece(
        self, prompt: Prompt, piece: slice, image_tokens: np.ndarray | None, row: int, engine: Engine | None = None
    ) -> None:
        """Reads a part of a prompt (pieces_of), for which there is room; none of it counts as read yet."""
        alone, first = slice(row, row + 1), int(self.lengths[row])
        past, present, outputs, more = (
            {name: buffer[alone] for name, buffer in side.items()}
            for side in (self.cache.past, self.cache.present, self._outputs, self._more_inputs)
        )
        inputs = {
            "input_ids": prompt.input_ids[None, piece],
            "image_tokens": self._no_picture[:1] if image_tokens is None else image_tokens,
            "image_index": prompt.image_index[None, piece],
            "write_index": np.array([first + piece.start], dtype=np.int64),
            "attention_limit": prompt.attention_limit[None, piece] + first,
            "logits_index": np.array([piece.stop - piece.start - 1], dtype=np.int64),
            **more,
        }
        (engine or self.engine).bind({**inputs, **past}, {**outputs, **present}).run()
        if self._head is not None and piece.stop == len(prompt):
            self._head.bind(outputs, {"logits": self.logits[alone]}).run()

    def adopt(self, slots: Arrays) -> None:
        """Begins with slots (1, g, k, d) that were read elsewhere, one tensor a layer under its past input's name."""
        count = next(iter(slots.values())).shape[2]
        if count > self.cache.max_slots:
            raise InputError(f"the picture takes {count} slots, this bundle holds at most {self.cache.max_slots}")
        self.cache.reserve(count)
        for name, array in slots.items():
            self.cache.buffers[name][:, :, :count] = array
        self.lengths[:] = self.cache.used = count

    def rewind(self, slots: int) -> None:
        """Forgets all but the first `slots` tokens; what comes next overwrites them."""
        self.lengths = np.minimum(self.lengths, slots)
        self.cache.used = int(self.lengths.max())

    def drop(self, first: int, count: int, theta: float) -> None:
        """Forgets tokens in the middle of what was read, of a model whose keys are turned by their slot (turned)."""
        self.cache.drop(first, count, theta)
        self.lengths -= count

    def fork(self) -> CachedTransformer:
        """Another conversation that has read the same, in memory of its own."""
        twin = CachedTransformer(*self._made_with)
        twin.cache.copy_of(self.cache)
        twin.lengths[:] = self.lengths
        return twin

    def reserve(self, slots: int) -> None:
        """Makes room for so many slots a row, and one behind them where candidates may be checked (steady_rows.py)."""
        if self.takes_candidates and self.cache.has_room(slots + 1):
            slots += 1
        if self.cache.reserve(slots):
            self._steps.clear()

    def with_rows(self, rows: int, slots: int) -> CachedTransformer:
        """The same conversations in memory of another size: so many rows of so many slots at least."""
        engine, most, block, head, _, budget, silent = self._made_with
        twin, kept = CachedTransformer(engine, most, block, head, rows, budget, silent), min(rows, len(self.lengths))
        twin.lengths[:kept] = self.lengths[:kept]
        twin.cache = self.cache
        twin.cache.resize(rows, slots)
        return twin

    def move_row(self, source: int, to: int, slots: int) -> None:
        """Lets a row go on in another's place; `slots` are those that it has read."""
        for buffer in self.cache.buffers.values():
            buffer[to, :, :slots] = buffer[source, :, :slots]
        self.lengths[to] = self.lengths[source]

    def clear_row(self, row: int, first: int = 0) -> None:
        """Numbers that went wrong from slot `first` on must not stay: 0 times NaN is NaN, also where nobody attends."""
        for buffer in self.cache.buffers.values():
            buffer[row, :, first:] = 0

    def prefill_rows(
        self, prompts: Sequence[Prompt], image_tokens: np.ndarray | None = None, slots: int = 0
    ) -> np.ndarray:
        """A prompt a row, with pictures (b, m, width); gives the logits (b, v) of their last tokens."""
        cache, longest = self.cache, max(map(len, prompts))
        if longest > cache.max_slots:
            raise InputError(f"the prompt takes {longest} tokens, this bundle holds at most {cache.max_slots}")
        self.reserve(max(slots, longest))
        self.lengths[:] = [len(prompt) for prompt in prompts]
        inputs = {
            "input_ids": _side_by_side([prompt.input_ids for prompt in prompts], longest),
            "image_tokens": self._no_picture if image_tokens is None else image_tokens,
            "image_index": _side_by_side([prompt.image_index for prompt in prompts], longest, -1),
            "write_index": np.zeros(len(prompts), dtype=np.int64),
            "attention_limit": _side_by_side([prompt.attention_limit for prompt in prompts], longest),
            "logits_index": self.lengths - 1,
            **self._more_inputs,
        }
        self.engine.bind({**inputs, **cache.past}, {**self._outputs, **cache.present}).run()
        if self._head is not None:
            self._head.bind(self._outputs, {"logits": self.logits}).run()
        cache.used = longest
        return self._said(f"after the prompt of {longest} tokens")

    def step(self, token: int) -> np.ndarray:
        """Reads one token; gives the logits (v) of the next.  Ask `full` first."""
        return self.step_rows(np.array([token], dtype=np.int64))[0]

    def read_candidates(self, tokens: Sequence[int]) -> np.ndarray:
        """Reads one token and candidates after it; gives the logits (r, v) after each.  Only the first counts as read.

        Each candidate that proves right is `keep`t; the others' slots are written over.
        """
        first, r = int(self.lengths[0]), len(tokens)
        self.reserve(first + r)
        where, more = first + np.arange(r), np.zeros((1, r - 1, self.logits.shape[1]), dtype=np.float32)
        inputs = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "image_tokens": self._no_picture,
            "image_index": np.full((1, r), -1, dtype=np.int64),
            "write_index": np.array([first], dtype=np.int64),
            "attention_limit": where[None],
            "logits_index": np.array([r - 1], dtype=np.int64),
            "draft_index": np.arange(r - 1)[None],
        }
        outputs = {**self._outputs, "draft_logits": more, **self.cache.present}
        self.engine.bind({**inputs, **self.cache.past}, outputs).run()
        self.keep()
        logits = np.concatenate([more[0], self.logits])
        check_finite(logits, f"transformer, logits at token {first + 1} and {r - 1} candidates after it")
        if self._silent is not None:
            logits[:, self._silent] = -np.inf
        return logits

    def keep(self) -> None:
        """One more of the candidates that were read is the conversation's."""
        self.lengths += 1
        self.cache.used = int(self.lengths[0])

    def step_rows(
        self,
        tokens: np.ndarray | None = None,
        image_tokens: np.ndarray | None = None,
        rows: int | None = None,
        check: bool = True,
    ) -> np.ndarray:
        """Reads one more a row, ids (b) or a picture's (b, 1, width); gives the logits (b, v) of the next.

        With `rows` the first so many take part and the others stay as they are.  Without `check` the caller looks
        whether the numbers are finite.
        """
        count = len(self.lengths) if rows is None else rows
        written, inputs = self.lengths[:count], self._step_inputs
        slots = int(written.max()) + 1
        self.reserve(slots)
        inputs["image_index"][:] = -1 if image_tokens is None else 0
        if image_tokens is not None:
            inputs["image_tokens"][:count] = image_tokens
        if tokens is not None:
            inputs["input_ids"][:count, 0] = tokens
        inputs["write_index"][:count] = written
        inputs["attention_limit"][:count, 0] = written
        step, head = self._step_of(count)
        step.run()
        if head is not None:
            head.run()
        self.lengths[:count] += 1
        self.cache.used = max(self.cache.used, slots)
        return self._said(f"at token {slots}", slice(count), check)

    def step_row(self, row: int, token: int) -> None:
        """Reads one token of one row; the others stay as they are.  The caller looks whether its logits are finite."""
        first, one = int(self.lengths[row]), np.array([token], dtype=np.int64)
        self.reserve(first + 1)
        alone = Prompt(one, np.full_like(one, -1), np.zeros_like(one), np.ones(1, dtype=np.float32))
        self.read_piece(alone, slice(0, 1), None, row)
        self.cache.used = max(self.cache.used, first + 1)
        self.begin_row(row, first + 1)

    def _step_of(self, count: int) -> tuple[Binding, Binding | None]:
        """What runs a step of the first rows."""
        if count not in self._steps:
            inputs, outputs, past, present = (
                {name: array[:count] for name, array in side.items()}
                for side in (self._step_inputs, self._outputs, self.cache.past, self.cache.present)
            )
            head = None if self._head is None else self._head.bind(outputs, {"logits": self.logits[:count]})
            self._steps[count] = self.engine.bind({**inputs, **past}, {**outputs, **present}), head
        return self._steps[count]

    def _said(self, where: str, rows: slice = slice(None), check: bool = True) -> np.ndarray:
        if check:
            check_finite(self.logits[rows], f"transformer, logits {where}")
        if self._silent is not None:
            self.logits[rows, self._silent] = -np.inf
        return self.logits


def turned(keys: np.ndarray, by: int, theta: float) -> np.ndarray:
    """Keys (b, g, k, d) after rotary embedding as they were `by` positions further on: the first half of a head against
    the second, at rates theta ** (-2i / d) (arXiv:2104.09864)."""
    d = keys.shape[3]
    angles = by * theta ** (-np.arange(0, d, 2) / d)  # (d/2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = (half.astype(np.float32) for half in (keys[..., : d // 2], keys[..., d // 2 :]))
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(keys.dtype)


class PrefillCancelled(Exception):
    """A prompt was not read to its end, because nobody wants to hear the reply any more."""


def pieces_of(prompt: Prompt) -> list[slice]:
    """A long prompt as parts that are read one after the other, with the same result: whoever cancels is heard between
    two of them.  Tokens that see later ones, a picture's for example, stay together with those."""
    seen = np.maximum.accumulate(prompt.attention_limit)  # the last position that any token so far looks at
    cuts = [0]
    while len(prompt) - cuts[-1] > PIECE:
        end = cuts[-1] + PIECE
        while end < len(prompt) and seen[end - 1] >= end:
            end += 1
        cuts.append(end)
    if cuts[-1] < len(prompt):
        cuts.append(len(prompt))
    return [slice(start, end) for start, end in pairwise(cuts)]


def _side_by_side(rows: Sequence[np.ndarray], longest: int, filling: int = 0) -> np.ndarray:
    """Rows of unequal length as one array (b, s)."""
    padded = np.full((len(rows), longest), filling, dtype=np.int64)
    for row, numbers in zip(padded, rows):
        row[: len(numbers)] = numbers
    return padded
