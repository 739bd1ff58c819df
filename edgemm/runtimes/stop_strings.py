"""Watch a stream of text for strings that end it, and hold back what may be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.errors import UsageError

__all__ = ["StopStrings", "overlap"]


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
