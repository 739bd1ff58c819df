"""Replies that follow a JSON schema or a grammar, through llguidance: at every token, what may come next.

The library knows grammars and the tokenizer, this file knows logits.  It is imported when a constraint is asked for.
Axes: v vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle.files import read_text, reading
from edgemm.bundle.forked import forked
from edgemm.errors import InputError, MissingError, UsageError

__all__ = ["Constraint", "ConstraintMaker", "StopStrings", "overlap"]

EMPTY, NO_WORD = "NoExtensionBias", "it allows no text at all"  # the library's word for it, and ours
CURE = "pip install 'edgemm[constrained]'"
LONG = 10_000  # letters of a grammar or schema; 41,000 were the fewest that ended the library
MOST_BYTES, MOST_S = 1 << 29, 10.0  # of a copy of this process that tries one


class ConstraintMaker:
    """Makes constraints for one tokenizer; the vocabulary is prepared once, when the first is asked for."""

    def __init__(self, tokenizer_path: Path, vocab_size: int, stop_token_ids: tuple[int, ...]) -> None:
        self._path = tokenizer_path
        self._vocab_size = vocab_size
        self._stops = stop_token_ids
        self._prepared: Any = None
        self._lock = threading.Lock()

    def make(self, json_schema: Mapping[str, Any] | str | None, grammar: str | None) -> Constraint:
        """From a JSON schema (a dict or its text) or a grammar in Lark's notation."""
        if json_schema is not None and grammar is not None:
            raise UsageError("json_schema and grammar are both given, expected one of them")
        try:
            import llguidance
        except ImportError as error:
            raise MissingError(f"json_schema and grammar need the package llguidance: {CURE}") from error
        matcher, name = llguidance.LLMatcher, "json_schema" if grammar is None else "grammar"
        with self._lock, reading(self._path, "cannot be used with json_schema or grammar"):
            if self._prepared is None:
                stops, text = list(self._stops) or None, read_text(self._path)
                self._prepared = llguidance.LLTokenizer(text, n_vocab=self._vocab_size, eos_token=stops)
        text = _schema_text(json_schema) if grammar is None else grammar

        def compiled() -> Any:
            if grammar is not None:
                source = matcher.grammar_from_lark(text)
            else:  # a small model that may write blanks writes blanks
                source = matcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
            made = matcher(self._prepared, source, log_level=0)
            made.compute_logit_bias()  # of the first token: a grammar without a single word fails here
            return made

        if len(text) > LONG:
            _try_first(compiled, f"{name} cannot be used: {len(text)} letters")
        with reading(name, "cannot be used", UsageError):
            return Constraint(compiled(), name)


def _try_first(compiled: Callable[[], Any], what: str) -> None:
    """In a copy of this process: rules that lead to one another thousands of times end the library's (its stack), which
    no `except` sees."""

    def survived() -> None:
        with contextlib.suppress(Exception):  # is told by who compiles it then
            compiled()

    if sys.platform == "linux":
        try:
            forked(survived, what, MOST_BYTES, MOST_S)
        except InputError as error:
            raise UsageError(str(error)) from error


def _schema_text(schema: Any) -> str:
    with reading("json_schema", "not JSON", UsageError):
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(schema, Mapping):
            raise UsageError(f"json_schema is {type(schema).__name__}, expected an object")
        return json.dumps(schema)


class Constraint:
    """Where one reply stands in its grammar, which the caller gave as `name`."""

    def __init__(self, matcher: Any, name: str) -> None:
        self._matcher, self._name = matcher, name
        self._check()

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """Logits (v) with -inf where the grammar has no such token now."""
        bias = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: len(logits)]
        self._check()
        return np.where(bias != 0, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """The reply goes on with this token."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """The grammar is satisfied and nothing can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            said = self._matcher.get_error().partition("<state>")[0]  # what follows is for the library's own people
            why = NO_WORD if EMPTY in said else " ".join(said.split())
            raise UsageError(f"{self._name} cannot be used: {why}")


# Watch a stream of text for strings that end it, and hold back what may be the beginning of one.


class StopStrings:
    """Text in, text out; nothing of a stop string, and nothing after it, ever comes out."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or any(not isinstance(stop, str) or not stop for stop in stops):
            raise UsageError(f"stop is {stops!r:.80}, expected a list of strings that are not empty")
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """What is safe to show now; `hit` tells whether a stop string was complete."""
        text = self._held + text
        self._held = ""
        found = [text.index(stop) for stop in self._stops if stop in text]
        if found:
            self.hit = True
            return text[: min(found)]
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back and turned out to be harmless."""
        text, self._held = self._held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
