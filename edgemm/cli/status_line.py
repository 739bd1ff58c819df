"""What is being done right now, on one line of stderr that the next one replaces; only a terminal gets to see it."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["StatusLine"]

ERASE = "\r\033[K"


class StatusLine:
    """Leaving it wipes the line away."""

    def __init__(self) -> None:
        self.wanted = sys.stderr.isatty()

    def say(self, text: str) -> None:
        if self.wanted:
            sys.stderr.write(f"{ERASE}{text}")
            sys.stderr.flush()

    def print(self, line: str) -> None:
        """A line for good, on stdout, seen at once even through a pipe."""
        self.say("")
        print(line, flush=True)

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.say("")
