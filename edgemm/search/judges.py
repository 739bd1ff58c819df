"""Two judges of one spec: a text and drawings that the model never calibrated on, the latter from the same noise.

They score the torch model before any export; its second copy holds the spec's numbers (simulated.py).
Axes: s tokens of a piece, b pictures, (3, H, W) pixels in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemm import progress
from edgemm.errors import CheckFailedError, UsageError
from edgemm.evaluate.checkpoint_subject import CheckpointSubject
from edgemm.evaluate.evaluation import SUITES, Plan, evaluate_subject
from edgemm.evaluate.metrics import compare_records, paired_difference, psnr_db
from edgemm.evaluate.subject import DrawSettings
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import shipped_text
from edgemm.quantize.simulated import weights_of
from edgemm.quantize.spec import REST, Spec
from edgemm.verify.parity import ssim

__all__ = [
    "Answers",
    "Scores",
    "ask",
    "compare",
    "layer_signals",
    "Records",
    "differences",
    "drawn_rightly",
    "task_records",
    "with_drawn",
    "Budget",
    "read_budget",
    "require_budgets",
]

PIECE = 512  # tokens read at a time
PROMPTS = tuple(shipped_text("evaluation_prompts.txt").splitlines())  # calibration draws none of them
SEED = 1000  # of the noise; calibration draws from another (NOISE_SEED)
MOST_DB = 100.0  # a layer that rounding did not change


@dataclass(frozen=True)
class Answers:
    """What a model says and draws."""

    perplexity: float
    choices: Tensor  # the likeliest token at every position of the text
    pictures: Tensor  # (b, 3, H, W)


@dataclass(frozen=True)
class Scores:
    """A quantized model beside the float one."""

    perplexity_float: float
    perplexity: float
    token_agreement: float  # share of positions with the same likeliest token
    psnr_db: float  # mean over the pictures
    psnr_worst_db: float
    ssim: float
    drawn_lost_percent: float | None = None  # of held-out drawings that the float model has right, where a judge saw
    drawn_lost_range: Sequence[float] | None = None  # its 95 % interval, prompts paired

    @property
    def perplexity_percent(self) -> float:
        """How much higher it is than the float model's."""
        return 100 * (self.perplexity / self.perplexity_float - 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"perplexity_percent": self.perplexity_percent}


@torch.no_grad()
def ask(model: Unified, steps: int, text: str | None = None, guidance: float | None = None) -> Answers:
    """`text` is the shipped chapter when nobody brings another."""
    perplexity, choices = _read(model, shipped_text("evaluation.txt") if text is None else text)
    tokens = model.config.image_tokens
    noise = torch.randn(
        len(PROMPTS), tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(SEED)
    )
    changes: dict[str, Any] = {"num_inference_steps": steps}
    sampler = model.with_sampler(**changes if guidance is None else {**changes, "guidance_scale": guidance})
    return Answers(perplexity, choices, model.draw(PROMPTS, noise, sampler).clamp(0, 1))


def _read(model: Unified, text: str) -> tuple[float, Tensor]:
    """exp of the mean negative log-likelihood of each token after those before it in its piece."""
    ids = torch.tensor(model.encode(text, special=False))
    total, choices = 0.0, []
    starts = range(0, len(ids) - 1, PIECE)
    for start in progress.track(starts, len(starts), "reading", "pieces"):
        piece = ids[start : start + PIECE + 1]
        seen, wanted = piece[None, :-1], piece[1:]
        hidden, _ = model.transformer(model.transformer.embed_tokens(seen), torch.arange(len(wanted))[None])
        logits = model.transformer.logits(hidden)[0]
        total -= float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum(dtype=torch.float64))
        choices.append(logits.argmax(-1))
    return math.exp(total / (len(ids) - 1)), torch.cat(choices)


def compare(plain: Answers, quantized: Answers) -> Scores:
    pictures = zip(quantized.pictures.numpy(), plain.pictures.numpy(), strict=True)
    each = [psnr_db(found, wanted) for found, wanted in pictures]
    return Scores(
        plain.perplexity,
        quantized.perplexity,
        float((plain.choices == quantized.choices).float().mean()),
        sum(each) / len(each),
        min(each),
        ssim(quantized.pictures, plain.pictures),
    )


@torch.no_grad()
def layer_signals(model: Unified, spec: Spec) -> dict[str, float]:
    """Layer -> dB of its weight over what rounding it added; of the smoothed float model, before the swap."""
    weights, found = weights_of(model), {}
    for name, layer in spec.document.layers.items():
        if layer.bits is not None and not name.endswith(REST):
            weight = weights[name]
            said = spec.dequantized(name)
            branch = spec.low_rank(name)
            if branch:
                said = said + torch.from_numpy(branch[1]) @ torch.from_numpy(branch[0])
            noise = (said - weight).square().sum() / weight.square().sum().clamp(min=1e-20)
            found[name] = min(MOST_DB, float(-10 * torch.log10(noise.clamp(min=1e-12))))
    return found


# How a quantized torch model does `edgemm eval`'s tasks beside the float one: paired, question by question.
#
# The suites and the bootstrap are those of edgemm/evaluate; here is only a model that is in memory already.

Records = dict[str, list[dict[str, Any]]]


def task_records(
    model: Unified,
    data: Path,
    limit: int | None,
    steps: int,
    groups: tuple[str, ...] = (),
    suites: tuple[str, ...] = SUITES,
    seeds: int = 1,
) -> Records:
    """Every answer and drawing, judged; at most `limit` questions a kind and prompts a split, of `groups` if named."""
    settings = DrawSettings(num_inference_steps=steps)
    subject = CheckpointSubject.of(model, settings)
    return evaluate_subject(subject, data, Plan(suites, limit, groups=groups, seeds=seeds, settings=settings)).records


def drawn_rightly(records: Records) -> list[float]:
    """Of every held-out prompt, of all where there are none, the share of its drawings that the judge names, or the
    checker passes."""
    rows = records["drawing"]
    rows = [row for row in rows if str(row.get("split", "")).startswith("held-out")] or rows
    prompts: defaultdict[tuple[Any, ...], list[bool]] = defaultdict(list)
    for row in rows:
        right = row["drawn_rank"] == 0 if "drawn_rank" in row else row["passed"]
        prompts[row["split"], row["sample"], row["prompt"]].append(bool(right))
    return [sum(right) / len(right) for right in prompts.values()]


def with_drawn(scores: Scores, plain: Sequence[float], quantized: Sequence[float]) -> Scores:
    """Scores that say what is lost of the prompts drawn rightly, from the same noise."""
    found = paired_difference(plain, quantized)
    lost = [-100 * value / found.first if found.first else 0.0 for value in (found.value, found.high, found.low)]
    return dataclasses.replace(scores, drawn_lost_percent=lost[0], drawn_lost_range=lost[1:])


def differences(plain: Records, quantized: Records, data: Path, limit: int | None) -> dict[str, Any]:
    """For the report: score -> both means, the difference and its 95 % interval."""
    found = compare_records(plain, quantized)
    return {
        "data": data.name,
        "limit": limit,
        "differences": {score: dataclasses.asdict(difference) for score, difference in found.items()},
    }


# How much quality a spec may cost, in a caller's words: `ppl+3%` for reading, `psnr30` or `ssim0.97` for drawing.

FORMS = {  # side -> what stands before a budget's number and behind it, and how to say one
    "text": ({"ppl+": "%"}, "ppl+3%: perplexity at most 3 % higher"),
    "draw": (
        {"psnr": "", "ssim": "", "drawn-": "%"},
        "psnr30: at least 30 dB; ssim0.97; or drawn-4%: at most 4 % fewer held-out prompts drawn rightly",
    ),
}
MOST = ("ppl", "drawn")  # of these a budget is the most that may be found, of others the least


@dataclass(frozen=True)
class Budget:
    word: str  # as it was given
    measure: str  # ppl, psnr, ssim or drawn
    limit: float

    def found(self, scores: Scores) -> float:
        lost = math.nan if scores.drawn_lost_percent is None else scores.drawn_lost_percent
        found = {"ppl": scores.perplexity_percent, "psnr": scores.psnr_db, "ssim": scores.ssim, "drawn": lost}
        return found[self.measure]

    def met(self, scores: Scores) -> bool:
        found = self.found(scores)
        return found <= self.limit if self.measure in MOST else found >= self.limit  # NaN meets nothing

    def __str__(self) -> str:
        return self.word


def read_budget(side: str, word: str) -> Budget:
    units, form = FORMS[side]
    matched = re.fullmatch(r"([a-z]+[+-]?)([0-9.]+)(%?)", word)
    measure = matched[1].rstrip("+-") if matched and units.get(matched[1]) == matched[3] else ""
    try:
        limit = float(matched[2]) if matched and measure else None
    except ValueError:
        limit = None
    if limit is None or (measure == "ssim" and limit > 1):  # which nothing meets
        raise UsageError(f"--budget-{side} {word!r} is not of the form {form}")
    return Budget(word, measure, limit)


def require_budgets(scores: Scores, budgets: tuple[Budget, ...]) -> None:
    """Raises CheckFailedError that says by how much the first one is missed."""
    for budget in budgets:
        if not budget.met(scores):
            unit = {"ppl": " %", "psnr": " dB", "ssim": "", "drawn": " % lost"}[budget.measure]
            raise CheckFailedError(
                f"budget {budget} is not met: {budget.measure} is {budget.found(scores):+.2f}{unit}; no spec was "
                "written (a finer precision, another --method or more calibration data may meet it)"
            )
