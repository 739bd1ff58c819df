"""A build takes minutes, and silence looks like a hang: what is being done, on stderr."""

from __future__ import annotations

import sys
import time

__all__ = ["Heartbeat"]

HEARTBEAT_S = 20.0


class Heartbeat:
    """What is being done: on a terminal one line that the next replaces, in a log a line now and then."""

    def __init__(self) -> None:
        self.live, self.next_s = sys.stderr.isatty(), time.monotonic() + HEARTBEAT_S

    def status(self, text: str) -> None:
        if self.live:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
        elif time.monotonic() >= self.next_s:
            self.next_s = time.monotonic() + HEARTBEAT_S
            self.say(text)

    def say(self, line: str) -> None:
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def print(self, line: str) -> None:
        self._clear()
        print(line, flush=True)

    def _clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\033[K")

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *how: object) -> None:
        self._clear()
