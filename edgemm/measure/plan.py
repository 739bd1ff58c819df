"""What a benchmark is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemm.errors import UsageError

__all__ = ["Plan", "Progress"]

LEAST = {"prompt_tokens": 1, "new_tokens": 2, "steps": 1, "repetitions": 1, "warmup": 0, "processes": 1}
Progress = Callable[[int, int, str], None]  # done, of how many, what comes next


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    prompt_tokens: int = 128  # template included
    new_tokens: int = 64
    steps: int | None = None  # denoising steps; None takes the bundle's own number
    repetitions: int = 20
    warmup: int = 3
    duration_s: float = 0.0  # runs are added until they took so long together
    device: str = "auto"
    threads: int | None = None
    seed: int = 0  # of the first picture; each run draws another one
    growth: bool = False  # also how prefill grows with the prompt
    processes: int = 1  # each does all of the above anew

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, expected at least {low}")
        if not 0 <= self.duration_s <= 86_400:
            raise UsageError(f"duration_s is {self.duration_s}, expected 0 to a day")

    @property
    def rounds(self) -> int:
        return self.warmup + self.repetitions
