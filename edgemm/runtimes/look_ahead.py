"""Several tokens in one run, and the same reply: what was said before is guessed again, and the guess is checked.

Prompt lookup: the last few tokens are looked for earlier in the conversation, and what followed them there is the
guess; the transformer reads the guess at once and gives the logits after each of its tokens (arXiv:2211.17192, with
the conversation itself as the small model).  Each token is still chosen from the transformer's own logits, so sampling,
penalties and grammars know nothing of it: a guess that the choice does not confirm is forgotten.
Axes: r tokens read at once, v vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from edgemm.runtimes.kv_cache import CachedTransformer

__all__ = ["LookAhead", "guess"]

LONGEST_MATCH = 3  # tokens


class LookAhead:
    """A transformer whose steps may have been run already."""

    def __init__(self, transformer: CachedTransformer, said: Sequence[int], most: int) -> None:
        self._transformer, self._most = transformer, most
        self._said = list(said)  # everything that a guess may be found in, this reply's own tokens included
        self._ahead: deque[tuple[int, np.ndarray]] = deque()  # a guessed token, and the logits (v) after it
        self.runs = 0

    def step(self, token: int) -> np.ndarray:
        """The logits (v) after one more token; ask `full` of the transformer first."""
        self._said.append(token)
        if self._ahead and self._ahead[0][0] == token:
            self._transformer.keep()
            return self._ahead.popleft()[1]
        self._ahead.clear()
        self.runs += 1
        drafts = guess(self._said, self._room())
        if not drafts:
            return self._transformer.step(token)
        logits = self._transformer.read_ahead([token, *drafts])
        self._ahead.extend(zip(drafts, logits[1:]))
        return logits[0]

    def _room(self) -> int:
        """How many guesses the cache can hold beside the token."""
        cache, most = self._transformer.cache, self._most
        while most and not cache.has_room(cache.used + 1 + most):
            most -= 1
        return most


def guess(said: Sequence[int], most: int) -> list[int]:
    """What followed the last tokens when they were said before: the longest match, the latest of those."""
    for length in range(min(LONGEST_MATCH, len(said) - 1), 0, -1):
        last = list(said[-length:])
        for start in range(len(said) - length - 1, -1, -1):
            if said[start] == last[0] and list(said[start : start + length]) == last:
                return list(said[start + length : start + length + most])
    return []
