"""Prompt-lookup decoding: several tokens in one run, and the same reply.

The last few tokens are looked for earlier in the conversation, and what followed them there are the candidates; the
transformer reads them at once and gives the logits after each (speculative decoding, arXiv:2211.17192, with the
conversation itself as the draft model).  Each token is still chosen from the transformer's own logits, so sampling,
penalties and grammars know nothing of it: a candidate that the choice does not confirm is forgotten.

How many candidates pay is seen while a reply runs: how often the first one was right costs nothing to count, as it may
be compared with what came without having been checked; and runs of one token and of more are timed.
Axes: r tokens read at once, v vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from edgemm.runtimes.kv_cache import CachedTransformer

__all__ = ["LONGEST_MATCH", "Gains", "PromptLookup", "Said"]

LONGEST_MATCH = 3  # tokens
FEW = 6  # candidates, where nobody says how many


class PromptLookup:
    """A transformer whose steps may have been run already."""

    def __init__(
        self,
        transformer: CachedTransformer,
        said: Sequence[int],
        most: int | None = None,  # candidates of every run; None: up to FEW, as many as pay
        clock: Callable[[], float] = time.perf_counter,  # seconds
    ) -> None:
        self._transformer, self._most, self._clock = transformer, FEW if most is None else most, clock
        self._said = Said(said)
        self._checked: deque[tuple[int, np.ndarray]] = deque()  # a candidate, and the logits (v) after it
        self._gains = Gains() if most is None else None  # None: whatever is lost

    def step(self, token: int) -> np.ndarray:
        """The logits (v) after one more token; ask `full` of the transformer first."""
        match, candidates = self._said.add(token, self._most)
        if self._gains:
            self._gains.came(token)
            self._gains.expects(match, candidates)
        if self._checked and self._checked[0][0] == token:
            self._transformer.keep()
            return self._checked.popleft()[1]
        self._checked.clear()
        candidates = candidates[: self._room()]
        if self._gains:
            candidates = candidates[: self._gains.best(match, len(candidates))]
        began = self._clock()
        if candidates:
            logits, *others = self._transformer.read_candidates([token, *candidates])
            self._checked.extend(zip(candidates, others, strict=True))
        else:
            logits = self._transformer.step(token)
        if self._gains:
            self._gains.took(len(candidates), self._clock() - began)
        return logits

    def _room(self) -> int:
        """How many candidates the cache can hold beside the token; none stands in its last slot (steady_rows.py)."""
        cache, most = self._transformer.cache, self._most
        while most and not cache.has_room(cache.used + 1 + most + 1):
            most -= 1
        return most


class Gains:
    """What so many candidates would gain: from how often they are right after matches of each length, and what they
    cost.  The first guesses are on the safe side."""

    PRIOR = (0.0, 0.2, 0.3, 0.5)  # right after a match of 0, 1, 2, 3 tokens, before any was seen
    SEEN = 4.0  # candidates that the guess counts as
    KEPT = 0.9  # of what was seen, at each one more: texts change
    SLOPE = 0.25  # of a run's time that one candidate costs more
    FOLLOWED = 0.3  # weight of the latest time
    LEAST = 1.05  # tokens a time that are worth it

    def __init__(self) -> None:
        self._right = [self.SEEN * share for share in self.PRIOR]
        self._seen = [self.SEEN] * len(self.PRIOR)
        self._one_s, self._slope = 0.0, self.SLOPE
        self._expected: tuple[int, int] | None = None  # match, token

    def expects(self, match: int, candidates: Sequence[int]) -> None:
        """What is to come next, checked or not."""
        self._expected = (match, candidates[0]) if candidates else None

    def came(self, token: int) -> None:
        if self._expected is not None:
            match, expected = self._expected
            self._right[match] = self.KEPT * self._right[match] + (token == expected)
            self._seen[match] = self.KEPT * self._seen[match] + 1

    def took(self, candidates: int, seconds: float) -> None:
        """A run of 1 + `candidates` tokens."""
        if candidates == 0:
            self._one_s += (self.FOLLOWED if self._one_s else 1) * (seconds - self._one_s)
        elif self._one_s:
            slope = min(max((seconds / self._one_s - 1) / candidates, 0), 1)
            self._slope += self.FOLLOWED * (slope - self._slope)

    def best(self, match: int, most: int) -> int:
        """How many of `most` candidates bring the most tokens a time; 0 where none are worth it."""
        best, found, tokens, all_right = self.LEAST, 0, 1.0, 1.0
        for count in range(1, most + 1):
            length = min(match + count - 1, LONGEST_MATCH)  # one that was right makes the match longer
            all_right *= self._right[length] / self._seen[length]
            tokens += all_right
            if tokens / (1 + count * self._slope) > best:
                best, found = tokens / (1 + count * self._slope), count
        return found


class Said:
    """Tokens, and what followed them when they were said before: the longest match, the latest of those."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # some tokens -> where what followed them begins
        for token in tokens:
            self.add(token)

    def add(self, token: int, most: int = 0) -> tuple[int, list[int]]:
        """One token more; how many tokens were found, 0 for none, and the candidates after them, `most` at most."""
        tokens, match, found = self._tokens, 0, 0
        tokens.append(token)
        for length in range(LONGEST_MATCH, 0, -1):
            if length <= len(tokens):
                last = tuple(tokens[-length:])
                if not match and last in self._after:
                    match, found = length, self._after[last]
                self._after[last] = len(tokens)
        return match, tokens[found : found + most] if match else []
