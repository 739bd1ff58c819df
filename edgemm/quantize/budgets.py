"""How much quality a spec may cost, in a caller's words: `ppl+3%` for reading, `psnr30` or `ssim0.97` for drawing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgemm.errors import CheckFailedError, UsageError
from edgemm.quantize.judges import Scores

__all__ = ["Budget", "read_budget", "require_budgets"]

FORMS = {
    "text": (r"ppl\+([0-9.]+)%", "ppl", "ppl+3%: perplexity at most 3 % higher"),
    "draw": (r"(?:psnr|ssim)([0-9.]+)", "", "psnr30: at least 30 dB; or ssim0.97"),
}


@dataclass(frozen=True)
class Budget:
    word: str  # as it was given
    measure: str  # ppl, psnr or ssim
    limit: float

    def found(self, scores: Scores) -> float:
        return {"ppl": scores.perplexity_percent, "psnr": scores.psnr_db, "ssim": scores.ssim}[self.measure]

    def met(self, scores: Scores) -> bool:
        found = self.found(scores)
        return found <= self.limit if self.measure == "ppl" else found >= self.limit  # NaN meets nothing

    def __str__(self) -> str:
        return self.word


def read_budget(side: str, word: str) -> Budget:
    pattern, measure, form = FORMS[side]
    matched = re.fullmatch(pattern, word)
    try:
        limit = float(matched[1]) if matched else None
    except ValueError:
        limit = None
    if limit is None:
        raise UsageError(f"--budget-{side} {word!r} is not of the form {form}")
    return Budget(word, measure or word[:4], limit)


def require_budgets(scores: Scores, budgets: tuple[Budget, ...]) -> None:
    """Raises CheckFailedError that says by how much the first one is missed."""
    for budget in budgets:
        if not budget.met(scores):
            unit = {"ppl": " %", "psnr": " dB", "ssim": ""}[budget.measure]
            raise CheckFailedError(
                f"budget {budget} is not met: {budget.measure} is {budget.found(scores):+.2f}{unit}; no spec was "
                "written (a finer precision, another --method or more calibration data may meet it)"
            )
