"""How a spec is judged before any export, and how one is searched for: every option said once.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemm.errors import UsageError
from edgemm.options import option

__all__ = ["JudgeOptions"]


@dataclass(frozen=True)
class JudgeOptions:
    """What `edgemm quantize` takes beside QuantizeOptions."""

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
        "psnr30 or ssim0.97: drawings at least so alike, or exit 7 (--auto: psnr30)",
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
    tasks_limit: int = option(100, "questions a kind", metavar="N")

    def __post_init__(self) -> None:
        if self.tasks_limit < 1:
            raise UsageError(f"--tasks-limit is {self.tasks_limit}, expected 1 or more")
        if self.report and self.report.suffix != ".html":
            raise UsageError(f"--report {self.report} does not end in .html")
        if self.tasks and not (self.report or self.auto):
            raise UsageError("--tasks is for the report: give --report PAGE.html too")

    @property
    def budgets(self) -> dict[str, str | None]:
        return {"text": self.budget_text, "draw": self.budget_draw}
