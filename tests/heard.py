"""What a test hears on the progress channel: `with hearing() as heard: ...; heard.lines`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgemm import progress

__all__ = ["Heard", "hearing"]


class Heard(progress.Listener):
    def __init__(self, lines: list[str]) -> None:
        self.statuses: list[str] = []
        self.lines = lines
        self.bars: list[progress.Bar] = []
        self.open: list[progress.Bar] = []

    def status(self, text: str) -> None:
        self.statuses.append(text)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def began(self, bar: progress.Bar) -> None:
        self.bars.append(bar)
        self.open.append(bar)

    def ended(self, bar: progress.Bar) -> None:
        self.open.remove(bar)


@contextmanager
def hearing(lines: list[str] | None = None) -> Iterator[Heard]:
    """`lines` is where lines for good go; a list of its own when nobody brings one."""
    heard = Heard([] if lines is None else lines)
    with progress.listening(heard):
        yield heard
