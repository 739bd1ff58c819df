"""What `edgemm quantize` is asked for: names, defaults and meaning of every option, said once.  No torch here.

QuantizeOptions say how a spec is made, JudgeOptions how it is judged before any export, and how one is searched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemm.errors import UsageError
from edgemm.options import option, parse_pairs

__all__ = ["JudgeOptions", "QuantizeOptions", "RANK"]

RANK = 16  # of svd's branch
TASKS_LIMIT = 100
LEAST = {"steps": 1, "rank": 1}


@dataclass(frozen=True)
class QuantizeOptions:
    """How the layers of reading (text) and drawing are quantized, and on what data their numbers are chosen."""

    text: str = option(
        "int4", "the transformer: int4, int4-w8a8, int8, w8a8, int8-web, fp16, fp8, nvfp4 or nvfp4-weights"
    )
    draw: str = option("int8", "conditioner and denoiser: int8, w4a8, fp16 or fp8")
    method: str | None = option(
        None,
        "rtn, kquant, awq, gptq, smoothquant, svd; joined by +, one a side with text=...,draw=... "
        "(default: what suits the precision)",
        metavar="METHOD",
    )
    calibration: Path | None = option(
        None, "a text file or a dataset folder (default: shipped text)", metavar="DATA", type=Path
    )
    samples: int | None = option(None, "pieces of text and prompts (default: 128, if there are)", metavar="N")
    steps: int | None = option(None, "denoising steps to calibrate and judge at (default: the model's)", metavar="N")
    rank: int = option(RANK, "of svd's branch", metavar="R")
    portable: bool = option(False, "forms that NVIDIA and OpenVINO take too")
    cache: Literal["float", "int8"] = option("float", "keys and values on CPUs")

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"--{name} is {value}, expected {least} or more")
        _by_side(self.method)

    @property
    def methods(self) -> dict[str, str]:
        """Side -> the method that was asked for; a side that is missing has what suits its precision."""
        return _by_side(self.method)


def _by_side(words: str | None) -> dict[str, str]:
    """`gptq` is for both sides, `text=awq+gptq,draw=svd` one for each, and "" none: rounded as the width suggests."""
    if words is None:
        return {}
    if "=" not in words:
        return dict.fromkeys(("text", "draw"), words)
    found = parse_pairs("--method", words)
    for side in found:
        if side not in ("text", "draw"):
            raise UsageError(f"--method names {side!r}, expected text=... or draw=...")
    return found


@dataclass(frozen=True)
class JudgeOptions:
    auto: Literal["smallest", "fastest"] | None = option(
        None,
        "find each layer's precision: the smallest (default) or fastest model within both budgets",
        nargs="?",
        const="smallest",
    )
    budget_text: str | None = option(
        None, "ppl+3%: perplexity at most 3 % higher, or exit 7 (--auto: ppl+3%)", metavar="BUDGET"
    )
    budget_draw: str | None = option(
        None,
        "psnr30 or ssim0.97: drawings at least so alike, or exit 7 (--auto: psnr30); drawn-4%: at most so much less of "
        "held-out prompts drawn rightly, as the judge of --tasks says, who sees more with --tasks-seeds 3",
        metavar="BUDGET",
    )
    report: Path | None = option(
        None, "judge the spec and write a page, and JSON beside it", metavar="PAGE.html", type=Path
    )
    tasks: Path | None = option(
        None,
        "a dataset: both models do its tasks, and the report compares them pair by pair; with --auto its judge scores "
        "every variant's drawings",
        metavar="DIR",
        type=Path,
    )
    tasks_limit: int = option(TASKS_LIMIT, "questions a kind, and prompts a split", metavar="N")
    tasks_seeds: int = option(1, "drawings of a prompt, each from other noise", metavar="N")

    def __post_init__(self) -> None:
        for name in ("tasks_limit", "tasks_seeds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected 1 or more")
        if self.report and self.report.suffix != ".html":
            raise UsageError(f"--report {self.report} does not end in .html")
        by_judge = (self.budget_draw or "").startswith("drawn")
        if by_judge and not self.tasks:
            raise UsageError(f"--budget-draw {self.budget_draw} is judged on a dataset: give --tasks DIR too")
        if not self.tasks and (self.tasks_limit, self.tasks_seeds) != (TASKS_LIMIT, 1):
            raise UsageError("--tasks-limit and --tasks-seeds say how much of a dataset is asked: give --tasks DIR too")
        if self.tasks and not (self.report or self.auto or by_judge):
            raise UsageError("--tasks is for the report: give --report PAGE.html too")

    @property
    def budgets(self) -> dict[str, str | None]:
        return {"text": self.budget_text, "draw": self.budget_draw}
