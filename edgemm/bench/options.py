"""What a benchmark is asked for: names, defaults and meaning of every option, said once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import UsageError
from edgemm.options import option

__all__ = ["Plan"]

LEAST = {"prompt_tokens": 1, "new_tokens": 2, "steps": 1, "repetitions": 1, "warmup": 0, "processes": 1}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    prompt_tokens: int = option(128, "tokens to read, template included", flag="-p --prompt-tokens", metavar="N")
    new_tokens: int = option(64, "tokens to write", flag="-n --new-tokens", metavar="N")
    steps: int | None = option(None, "denoising steps (default: the bundle's own)", metavar="N")
    repetitions: int = option(
        20, "runs that count, at least (default: 20; 5 in each process)", flag="-r --repetitions", metavar="N"
    )
    warmup: int = option(3, "runs before, thrown away", metavar="N")
    duration_s: float = option(
        0.0, "and at least so long together (default: 10; 0 in each process)", flag="--duration", metavar="S"
    )
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int | None = option(None, "CPU threads (default: the cores this process may use)", metavar="N")
    root: str = option("/", "read board, sensors and clocks from a recorded machine's files", metavar="FOLDER")
    seed: int = option(0, "of the first picture; each run draws another one", flag=False)
    growth: bool = option(False, "also how prefill grows with the prompt", flag=False)
    processes: int = option(1, "start anew N times: an interval needs it (default: 1; --against: 6)", metavar="N")

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, expected at least {low}")
        if not Path(self.root).is_dir():
            raise UsageError(f"root is {self.root}, expected a folder with proc, sys and etc in it")
        if not 0 <= self.duration_s <= 86_400:
            raise UsageError(f"duration_s is {self.duration_s}, expected 0 to a day")

    @property
    def rounds(self) -> int:
        return self.warmup + self.repetitions
