"""The transformer and its K/V cache: prefill a prompt, then one token at a time.

The only place that knows slots.  The buffers are static and the graph writes them in place (the same memory is bound as
past and as present); when they are full they are copied into larger ones, a block at a time, up to the bundle's limit.
Axes: b batch (1), s new tokens, T cache slots, m image tokens, g K/V heads, d head width, v vocabulary.
"""

from __future__ import annotations

import numpy as np

from edgemm.errors import InputError
from edgemm.runtimes.engine import Arrays, Binding, Engine, check_finite
from edgemm.runtimes.prompt import Prompt

__all__ = ["BLOCK", "CachedTransformer", "KVCache"]

BLOCK = 256  # slots a cache grows by


class KVCache:
    """Zeroed K/V buffers (1, g, T, d), one a layer, named as the graph's past inputs."""

    def __init__(self, engine: Engine, max_slots: int, block: int = BLOCK) -> None:
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
            self.buffers[name] = np.zeros((1, heads, self.slots, width), dtype=spec.dtype)
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
    """One conversation with the transformer: it remembers what it has read."""

    def __init__(self, engine: Engine, max_context: int, block: int = BLOCK) -> None:
        self.engine = engine
        self.cache = KVCache(engine, max_context, block)
        self.logits = np.zeros((1, engine.outputs["logits"].fixed(1, "vocabulary")), dtype=np.float32)
        self._no_picture = np.zeros((1, 1, engine.inputs["image_tokens"].fixed(2, "width")), dtype=np.float32)
        self._step_inputs = {
            "input_ids": np.zeros((1, 1), dtype=np.int64),
            "image_tokens": self._no_picture,
            "image_index": np.full((1, 1), -1, dtype=np.int64),
            "write_index": np.zeros(1, dtype=np.int64),
            "attention_limit": np.zeros((1, 1), dtype=np.int64),
            "logits_index": np.zeros(1, dtype=np.int64),
        }
        self._step: Binding | None = None

    @property
    def full(self) -> bool:
        return self.cache.used >= self.cache.max_slots

    def prefill(self, prompt: Prompt, image_tokens: np.ndarray | None = None, slots: int = 0) -> np.ndarray:
        """Reads a prompt, with pictures (1, m, width); gives the logits (v) of its last token.

        `slots` asks for that much room at once.
        """
        cache = self.cache
        if len(prompt) > cache.max_slots:
            raise InputError(f"the prompt takes {len(prompt)} tokens, this bundle holds at most {cache.max_slots}")
        if cache.reserve(max(slots, len(prompt))):
            self._step = None
        inputs = {
            "input_ids": prompt.input_ids[None],
            "image_tokens": self._no_picture if image_tokens is None else image_tokens,
            "image_index": prompt.image_index[None],
            "write_index": np.zeros(1, dtype=np.int64),
            "attention_limit": prompt.attention_limit[None],
            "logits_index": np.array([len(prompt) - 1], dtype=np.int64),
        }
        self.engine.bind({**inputs, **cache.past}, {"logits": self.logits, **cache.present}).run()
        cache.used = len(prompt)
        check_finite(self.logits, f"transformer, logits after the prompt of {len(prompt)} tokens")
        return self.logits[0]

    def step(self, token: int) -> np.ndarray:
        """Reads one token; gives the logits (v) of the next.  Ask `full` first."""
        slot = self.cache.used
        if self.cache.reserve(slot + 1) or self._step is None:
            outputs = {"logits": self.logits, **self.cache.present}
            self._step = self.engine.bind({**self._step_inputs, **self.cache.past}, outputs)
        self._step_inputs["input_ids"][:] = token
        self._step_inputs["write_index"][:] = slot
        self._step_inputs["attention_limit"][:] = slot
        self._step.run()
        self.cache.used = slot + 1
        check_finite(self.logits, f"transformer, logits at token {slot + 1}")
        return self.logits[0]
