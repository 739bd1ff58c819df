"""The transformer and its K/V cache: prefill a prompt, then one token at a time.

The only place that knows slots.  The buffers are static and the graph writes them in place (the same memory is bound as
past and as present); when they are full they are copied into larger ones, a block at a time, up to the bundle's limit.
Several rows go on side by side, each from its own length: a shorter prompt is padded, and what its padding left in the
cache is overwritten before anything may look at it.
Axes: b batch (rows), s new tokens, T cache slots, m image tokens, g K/V heads, d head width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemm.errors import InputError
from edgemm.runtimes.engine import Arrays, Binding, Engine, check_finite
from edgemm.runtimes.prompt import Prompt

__all__ = ["BLOCK", "CachedTransformer", "KVCache"]

BLOCK = 256  # slots a cache grows by


class KVCache:
    """Zeroed K/V buffers (b, g, T, d), one a layer, named as the graph's past inputs."""

    def __init__(self, engine: Engine, max_slots: int, block: int = BLOCK, rows: int = 1) -> None:
        self.rows = rows
        self.specs = {name: spec for name, spec in engine.inputs.items() if name.startswith("past_")}
        sizes = {spec.shape[2] for spec in self.specs.values() if isinstance(spec.shape[2], int)}
        self.max_slots = min([max_slots, *sizes])
        self.block = self.max_slots if sizes else block  # a graph of one fixed size starts with it
        self.used = 0
        self.slots = 0
        self.buffers: dict[str, np.ndarray] = {}

    def reserve(self, slots: int) -> bool:
        """Makes room for so many slots in all; True when the buffers are new, so bindings to the old ones are void."""
        if slots <= self.slots:
            return False
        self.slots = min(-(-slots // self.block) * self.block, self.max_slots)
        old, self.buffers = self.buffers, {}
        for name, spec in self.specs.items():
            heads, width = spec.fixed(1, "K/V heads"), spec.fixed(3, "head width")
            self.buffers[name] = np.zeros((self.rows, heads, self.slots, width), dtype=spec.dtype)
            if name in old:
                self.buffers[name][:, :, : self.used] = old.pop(name)[:, :, : self.used]
        return True

    @property
    def past(self) -> Arrays:
        return self.buffers

    @property
    def present(self) -> Arrays:
        """The same memory under the names of the graph's outputs."""
        return {name.replace("past_", "present_", 1): buffer for name, buffer in self.buffers.items()}


class CachedTransformer:
    """One conversation with the transformer, or several side by side: it remembers what it has read.

    `head` makes logits of its hidden states where the transformer has none of its own.
    """

    def __init__(
        self, engine: Engine, max_context: int, block: int = BLOCK, head: Engine | None = None, rows: int = 1
    ) -> None:
        self.engine = engine
        self.cache = KVCache(engine, max_context, block, rows)
        self.lengths = np.zeros(rows, dtype=np.int64)  # tokens read, a row
        said = (head or engine).outputs["logits"]
        self.logits = np.zeros((rows, said.fixed(1, "vocabulary")), dtype=np.float32)
        self._outputs, self._head = {"logits": self.logits}, None
        if head is not None:
            self._outputs = {"hidden": np.zeros((rows, engine.outputs["hidden"].fixed(1, "width")), dtype=np.float32)}
            self._head = head.bind(self._outputs, {"logits": self.logits})
        width = engine.inputs["image_tokens"].fixed(2, "width")
        self._no_picture = np.zeros((rows, 1, width), dtype=np.float32)
        self._step_inputs = {
            "input_ids": np.zeros((rows, 1), dtype=np.int64),
            "image_tokens": np.zeros((rows, 1, width), dtype=np.float32),
            "image_index": np.full((rows, 1), -1, dtype=np.int64),
            "write_index": np.zeros(rows, dtype=np.int64),
            "attention_limit": np.zeros((rows, 1), dtype=np.int64),
            "logits_index": np.zeros(rows, dtype=np.int64),
        }
        self._step: Binding | None = None

    @property
    def full(self) -> bool:
        return self.cache.used >= self.cache.max_slots

    def prefill(self, prompt: Prompt, image_tokens: np.ndarray | None = None, slots: int = 0) -> np.ndarray:
        """Reads a prompt, with pictures (1, m, width); gives the logits (v) of its last token.

        `slots` asks for that much room at once.
        """
        return self.prefill_rows([prompt], image_tokens, slots)[0]

    def prefill_rows(
        self, prompts: Sequence[Prompt], image_tokens: np.ndarray | None = None, slots: int = 0
    ) -> np.ndarray:
        """A prompt a row, with pictures (b, m, width); gives the logits (b, v) of their last tokens."""
        cache, longest = self.cache, max(map(len, prompts))
        if longest > cache.max_slots:
            raise InputError(f"the prompt takes {longest} tokens, this bundle holds at most {cache.max_slots}")
        if cache.reserve(max(slots, longest)):
            self._step = None
        self.lengths[:] = [len(prompt) for prompt in prompts]
        inputs = {
            "input_ids": _side_by_side([prompt.input_ids for prompt in prompts], longest),
            "image_tokens": self._no_picture if image_tokens is None else image_tokens,
            "image_index": _side_by_side([prompt.image_index for prompt in prompts], longest, -1),
            "write_index": np.zeros(len(prompts), dtype=np.int64),
            "attention_limit": _side_by_side([prompt.attention_limit for prompt in prompts], longest),
            "logits_index": self.lengths - 1,
        }
        self.engine.bind({**inputs, **cache.past}, {**self._outputs, **cache.present}).run()
        cache.used = longest
        return self._said(f"after the prompt of {longest} tokens")

    def step(self, token: int) -> np.ndarray:
        """Reads one token; gives the logits (v) of the next.  Ask `full` first."""
        return self.step_rows(np.array([token], dtype=np.int64))[0]

    def step_rows(self, tokens: np.ndarray | None = None, image_tokens: np.ndarray | None = None) -> np.ndarray:
        """Reads one more a row, ids (b) or a picture's (b, 1, width); gives the logits (b, v) of the next."""
        slots = int(self.lengths.max()) + 1
        if self.cache.reserve(slots) or self._step is None:
            outputs = {**self._outputs, **self.cache.present}
            self._step = self.engine.bind({**self._step_inputs, **self.cache.past}, outputs)
        inputs = self._step_inputs
        inputs["image_index"][:] = -1 if image_tokens is None else 0
        if image_tokens is not None:
            inputs["image_tokens"][:] = image_tokens
        if tokens is not None:
            inputs["input_ids"][:, 0] = tokens
        inputs["write_index"][:] = self.lengths
        inputs["attention_limit"][:, 0] = self.lengths
        self._step.run()
        self.lengths += 1
        self.cache.used = slots
        return self._said(f"at token {slots}")

    def _said(self, where: str) -> np.ndarray:
        if self._head is not None:
            self._head.run()
        check_finite(self.logits, f"transformer, logits {where}")
        return self.logits


def _side_by_side(rows: Sequence[np.ndarray], longest: int, filling: int = 0) -> np.ndarray:
    """Rows of unequal length as one array (b, s)."""
    padded = np.full((len(rows), longest), filling, dtype=np.int64)
    for row, numbers in zip(padded, rows):
        row[: len(numbers)] = numbers
    return padded
