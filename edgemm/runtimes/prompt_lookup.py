"""Prompt-lookup decoding: several tokens in one run, and the same reply.

The last few tokens are looked for earlier in the conversation, and what followed them there are the candidates; the
transformer reads them at once and gives the logits after each (speculative decoding, arXiv:2211.17192, with the
conversation itself as the draft model).  Each token is still chosen from the transformer's own logits, so sampling,
penalties and grammars know nothing of it: a candidate that the choice does not confirm is forgotten.
Axes: r tokens read at once, v vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from edgemm.runtimes.kv_cache import CachedTransformer

__all__ = ["PromptLookup", "Said"]

LONGEST_MATCH = 3  # tokens
FEW = 3  # candidates, where nobody says how many, after a match of LONGEST_MATCH: a run of 4 tokens takes 1.2 to 1.4
COST, MOST_LOST, PAUSE = 0.4, 1.2, 64  # of one's time: what it loses, how much in a row, and then for how long it stops


class PromptLookup:
    """A transformer whose steps may have been run already."""

    def __init__(self, transformer: CachedTransformer, said: Sequence[int], most: int, sparing: bool = False) -> None:
        self._transformer, self._most = transformer, most
        self._said = Said(said, LONGEST_MATCH if sparing else 1)
        self._checked: deque[tuple[int, np.ndarray]] = deque()  # a candidate, and the logits (v) after it
        self._lost, self._until = 0.0, 0 if sparing else None  # None: whatever is lost
        self.runs = 0

    def step(self, token: int) -> np.ndarray:
        """The logits (v) after one more token; ask `full` of the transformer first."""
        candidates = self._said.add(token, self._most)
        if self._checked and self._checked[0][0] == token:
            self._transformer.keep()
            self._lost -= 1
            return self._checked.popleft()[1]
        self._checked.clear()
        self.runs += 1
        candidates = candidates[: self._room()]
        if not candidates or not self._pays():
            return self._transformer.step(token)
        logits = self._transformer.read_candidates([token, *candidates])
        self._checked.extend(zip(candidates, logits[1:]))
        return logits[0]

    def _pays(self) -> bool:
        """Whether to check candidates now, which may be lost: after some that were it waits, then tries once more."""
        if self._until is None:
            return True
        if self.runs < self._until:
            return False
        self._lost = max(self._lost, -MOST_LOST) + COST
        if self._lost >= MOST_LOST:
            self._until, self._lost = self.runs + PAUSE, MOST_LOST - COST
        return True

    def _room(self) -> int:
        """How many candidates the cache can hold beside the token; none stands in its last slot (steady_rows.py)."""
        cache, most = self._transformer.cache, self._most
        while most and not cache.has_room(cache.used + 1 + most + 1):
            most -= 1
        return most


class Said:
    """Tokens, and what followed them when they were said before: the longest match, the latest of those."""

    def __init__(self, tokens: Sequence[int], shortest: int = 1) -> None:
        self._tokens: list[int] = []
        self._lengths = range(LONGEST_MATCH, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # some tokens -> where what followed them begins
        for token in tokens:
            self.add(token)

    def add(self, token: int, most: int = 0) -> list[int]:
        """One token more; the candidates after it, `most` of them."""
        tokens, found = self._tokens, None
        tokens.append(token)
        for length in self._lengths:
            if length <= len(tokens):
                last = tuple(tokens[-length:])
                found = self._after.get(last) if found is None else found
                self._after[last] = len(tokens)
        return [] if found is None else tokens[found : found + most]
