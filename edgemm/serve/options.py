"""How a server is run: names, defaults and meaning of every option, said once for `edgemm serve` and serve.app()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from edgemm.errors import UsageError
from edgemm.options import option

__all__ = ["ServeKeywords", "ServeOptions"]


@dataclass(frozen=True)
class ServeOptions:
    """What is answered, to whom, and how much at once."""

    alias: Sequence[str] = option((), "another name of a model: NAME for the first, or NAME=MODEL", metavar="NAME")
    adapter: Sequence[str] = option(
        (), "a LoRA adapter, answered as MODEL:NAME: NAME=FOLDER, or MODEL:NAME=FOLDER", metavar="NAME=FOLDER"
    )
    api_key_file: str | None = option(None, "who may ask: one key a line; without it everybody", metavar="FILE")
    max_batch: int = option(8, "replies that are written side by side", metavar="N")
    max_queue: int = option(64, "requests that may wait; more are refused with 429", metavar="N")
    draw_share: float = option(
        0.5, "the part of the device's time that drawing gets while text waits, too: 0.01 to 0.99", metavar="S"
    )
    timeout_s: float = option(600.0, "the longest that a request may take, its waiting included", metavar="S")
    max_body_mb: float = option(32.0, "the largest request", metavar="MB")
    max_images: int = option(16, "pictures that one request may show or ask for", metavar="N")
    cors_origin: Sequence[str] = option((), "a web page's origin that browsers may ask from; * for all", metavar="URL")
    log_prompts: bool = option(False, "write what was asked into the log, too")

    def __post_init__(self) -> None:
        for name, low in (("max_batch", 1), ("max_queue", 0), ("max_images", 1), ("timeout_s", 0), ("max_body_mb", 0)):
            value = getattr(self, name)
            if not value >= low or (value == low == 0 and name != "max_queue"):
                raise UsageError(f"{name} is {value}, expected {'above' if low == 0 else 'at least'} {low}")
        if not 0.01 <= self.draw_share <= 0.99:
            raise UsageError(f"draw_share is {self.draw_share}, expected 0.01 to 0.99")


class ServeKeywords(TypedDict, total=False):
    """ServeOptions for type checkers."""

    alias: Sequence[str]
    adapter: Sequence[str]
    api_key_file: str | None
    max_batch: int
    max_queue: int
    draw_share: float
    timeout_s: float
    max_body_mb: float
    max_images: int
    cors_origin: Sequence[str]
    log_prompts: bool
