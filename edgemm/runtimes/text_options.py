"""How a reply may go, as a caller says it: one place for names, defaults and checks of every way to ask for text."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm.errors import UsageError
from edgemm.loops import TextLoop
from edgemm.runtimes.constraint import ConstraintMaker
from edgemm.runtimes.prompt import Prompt
from edgemm.runtimes.sampling import Sampling
from edgemm.runtimes.text_loop import TextRequest

__all__ = ["TextOptions"]


@dataclass(frozen=True)
class TextOptions:
    """The options of Model.stream_text and its relatives."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None  # None draws one, which the result tells
    stop: Sequence[str] = ()
    logprobs: int | None = None  # tell how likely each token was, and so many of the likeliest beside it
    json_schema: Mapping[str, Any] | str | None = None  # the reply is JSON of this schema
    grammar: str | None = None  # the reply is a word of this grammar, in Lark's notation
    timeout_s: float | None = None
    ignore_eos: bool = False  # the model's own stop tokens end nothing
    guess_ahead: int = 0  # tokens at most that are guessed from the conversation and checked in one run

    def request(
        self, prompt: Prompt, loop: TextLoop, constraints: ConstraintMaker, history: tuple[int, ...] = ()
    ) -> TextRequest:
        """What the text loop wants; raises UsageError by the option's name."""
        if isinstance(self.stop, str):
            raise UsageError(f"stop is {self.stop!r}, expected a list of strings")
        seed = secrets.randbits(32) if self.seed is None and self.temperature else self.seed
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, seed)
        constraint = None
        if self.json_schema is not None or self.grammar is not None:
            constraint = constraints.make(self.json_schema, self.grammar)
        return TextRequest(
            prompt,
            sampling,
            self.max_new_tokens,
            tuple(self.stop),
            () if self.ignore_eos else loop.stop_token_ids,
            self.logprobs,
            constraint,
            history,
            self.guess_ahead,
        )
