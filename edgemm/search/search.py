"""The smallest, or the fastest, way to quantize a model within two budgets: `edgemm quantize --auto`.

Every group of layers (levels.py) is coarsened alone first, and judged by how far the next words drift (divergence of a
page) and the drawings (squared difference of two); page and drawings are calibration's, not the judges'.  Then the
groups go down together, those that gain most for their harm first, as many as both budgets bear: a binary search, each
of whose points is judged in full.  Where even 8 bits miss a budget, the same walk goes from float to 8 bits.  Reading
goes first, drawing after it.
Every measurement is written down (measured.py), so a search that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemm import progress
from edgemm.errors import CheckFailedError
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import NOISE_SEED
from edgemm.quantize.layers import methods_of
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.spec import HEAD, Spec
from edgemm.search.judges import PROMPTS, Answers, Budget, Scores, ask, compare, with_drawn
from edgemm.search.levels import FLOAT, Choice, Levels, divergence, log_probabilities, make_levels
from edgemm.search.measured import Journal, ProductTimes

__all__ = ["Aim", "Checker", "Found", "Point", "Search", "search"]

GLANCE_TOKENS = 256  # of the text, when a group is judged alone
GLANCE_PICTURES = 2
LEAST = 1e-9  # so that nothing divides by zero


@dataclass(frozen=True)
class Checker:
    """Who says which drawings are right, and a name that tells one from another."""

    name: str
    score: Callable[[Unified], list[float]]  # a share for every prompt


@dataclass(frozen=True)
class Aim:
    """What is looked for."""

    goal: str  # smallest or fastest
    budgets: Mapping[str, Budget]  # "text" and "draw"
    checker: Checker | None = None


@dataclass(frozen=True)
class Point:
    """One variant that was judged in full."""

    name: str
    choice: dict[str, int]  # group -> bits, where they are not 8
    size_bytes: int
    text_ms: float  # products of one token
    draw_ms: float  # products of one denoising step
    scores: Scores
    drawn: float | None = None  # share of a dataset's captions that it draws rightly, if that was asked

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "scores": self.scores.to_json()}


@dataclass(frozen=True, eq=False)
class Found:
    spec: Spec
    best: Point
    points: list[Point]
    signals: dict[str, float]  # layer -> dB
    plain: Answers
    quantized: Answers


def search(
    model: Unified,
    aim: Aim,
    options: QuantizeOptions,
    journal: Path,
    checkpoint: tuple[str, str] = ("", ""),
) -> Found:
    """Smoothing is folded into `model` itself.  Raises CheckFailedError where no walk meets both budgets."""
    steps = options.steps or model.config.sampler.num_inference_steps
    options = dataclasses.replace(options, text="int8", draw="int8", steps=steps)  # where the walk begins
    about = {
        "checkpoint_sha256": checkpoint[1],
        "methods": methods_of(options),
        "calibration": str(options.calibration),
        "samples": options.samples,
        "steps": steps,
        "rank": options.rank,
        "checker": aim.checker.name if aim.checker else None,
        "drawings": list(PROMPTS),
    }
    written = Journal(journal, about)
    if written.found:
        progress.line(f"going on with {len(written.found)} measurements in {journal}")
    progress.status("asking the float model")
    plain = ask(model, steps)
    plain_drawn = _plain_drawn(model, aim, written)
    progress.status("rounding to 8 and to 4 bits")
    walk = Search(make_levels(model, options, checkpoint), aim, written, plain, steps, plain_drawn)
    best = walk.run()
    levels = walk.levels
    levels.set(best.choice)
    return Found(levels.spec(best.choice), best, walk.points, levels.signals(best.choice), plain, ask(model, steps))


def _plain_drawn(model: Unified, aim: Aim, written: Journal) -> list[float] | None:
    """What the float model draws rightly, where a budget asks for it."""
    if aim.checker is None or all(budget.measure != "drawn" for budget in aim.budgets.values()):
        return None
    if "plain" not in written.found:
        written.add("plain", drawn=aim.checker.score(model))
    return written.found["plain"]["drawn"]


class Search:
    """One walk; `points` is everything that was judged in full."""

    def __init__(
        self,
        levels: Levels,
        aim: Aim,
        journal: Journal,
        plain: Answers,
        steps: int,
        plain_drawn: list[float] | None = None,
    ) -> None:
        self.model, self.levels = levels.model, levels
        self.goal, self.budgets, self.checker = aim.goal, aim.budgets, aim.checker
        self.journal, self.plain, self.steps, self.plain_drawn = journal, plain, steps, plain_drawn
        self.times = ProductTimes()
        self.points: list[Point] = []
        self.glanced: tuple[dict[str, int], Tensor, Tensor] | None = None
        self.page = levels.data.texts.flatten()[None, :GLANCE_TOKENS]

    def run(self) -> Point:
        """The best point that meets both budgets."""
        start = self.judge("all in 8 bits", {})
        if self.met(start):
            best = start
            for side in ("text", "draw"):
                best = self.descend(side, best, 4)
        else:
            missed = next(side for side in ("text", "draw") if not self.budgets[side].met(start.scores))
            progress.line(f"8 bits miss {self.budgets[missed]}: looking for layers that have to stay in float")
            kept = {group: FLOAT for group in self.levels.groups if not group.startswith(HEAD)}
            best = self.judge("all in float but the embedding", kept)
            if not self.met(best):
                raise CheckFailedError(self._hopeless(best))
            for side in ("text", "draw"):
                best = self.descend(side, best, 8)
        return best

    def _hopeless(self, point: Point) -> str:
        missed = next(budget for budget in self.budgets.values() if not budget.met(point.scores))
        return (
            f"budget {missed} cannot be met: {missed.measure} is {missed.found(point.scores):+.2f} with an 8-bit "
            "embedding and all else in float; no spec was written"
        )

    def met(self, point: Point) -> bool:
        return all(budget.met(point.scores) for budget in self.budgets.values())

    def descend(self, side: str, start: Point, level: int) -> Point:
        """As many groups of one side to `level` as the budgets bear; `start` meets them."""
        groups = [group for group in self.levels.groups if self.levels.side(group) == side]
        groups = [group for group in groups if start.choice.get(group, 8) != level]
        order = self.order(side, start.choice, groups, level)
        best, low, high = start, 0, len(order)
        while low < high:
            count = (low + high + 1) // 2
            chosen = {**start.choice, **dict.fromkeys(order[:count], level)}
            point = self.judge(f"{side}: {count} of {len(order)} groups in {level} bits", chosen)
            if self.met(point):
                best, low = point, count
            else:
                high = count - 1
        return best

    def order(self, side: str, base: dict[str, int], groups: Sequence[str], level: int) -> list[str]:
        """Most gain for its harm first; what gains nothing is left out."""
        gains = {group: self.cost(base) - self.cost({**base, group: level}) for group in groups}
        groups = [group for group in groups if gains[group] > 0]
        harms = {}
        progress.status(f"{side}: what each group of layers costs alone in {level} bits")
        for group in progress.track(groups, len(groups), "judging", "groups"):
            harms[group] = self.harm(base, {**base, group: level})
        words, pictures = (sum(harm[part] for harm in harms.values()) + LEAST for part in (0, 1))
        shares = {group: harm[0] / words + harm[1] / pictures + LEAST for group, harm in harms.items()}
        return sorted(groups, key=lambda group: -gains[group] / shares[group])

    def cost(self, choice: Choice) -> float:
        """Bytes or milliseconds of both loops together."""
        return self.levels.bytes_of(choice) if self.goal == "smallest" else sum(self.ms(choice).values())

    def ms(self, choice: Choice) -> dict[str, float]:
        """Of products: one token's of reading, one step's of drawing."""
        total = {"text": 0.0, "draw": 0.0}
        rows = {"text": 1, "draw": self.model.config.image_tokens.token_count}
        for _, shape, layer, side in self.levels.products(choice):
            total[side] += self.times.ms(*shape, rows[side], layer)
        return total

    def harm(self, base: dict[str, int], choice: dict[str, int]) -> tuple[float, float]:
        """What a choice does to the next words and to drawings, at a glance; kept in the journal."""
        key = _key("glance", base, choice)
        if key not in self.journal.found:
            if self.glanced is None or self.glanced[0] != base:
                self.glanced = base, *self.glance(base)
            drifted, drawn = self.glance(choice)
            _, words, pictures = self.glanced
            self.journal.add(key, words=divergence(drifted, words), pictures=float((drawn - pictures).square().mean()))
        row = self.journal.found[key]
        return row["words"], row["pictures"]

    @torch.no_grad()
    def glance(self, choice: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a page (s, vocab), and drawings."""
        self.levels.set(choice)
        tokens = self.model.config.image_tokens
        random = torch.Generator().manual_seed(NOISE_SEED)
        noise = torch.randn(GLANCE_PICTURES, tokens.token_count, tokens.token_width, generator=random)
        sampler = self.model.with_sampler(num_inference_steps=self.steps)
        drawn = self.model.draw(self.levels.data.prompts[:GLANCE_PICTURES], noise, sampler).clamp(0, 1)
        return log_probabilities(self.model, self.page), drawn

    def judge(self, name: str, choice: dict[str, int]) -> Point:
        """In full; kept in the journal."""
        key = _key("judged", {}, choice)
        if key not in self.journal.found:
            progress.status(f"judging {name}")
            self.levels.set(choice)
            scores = compare(self.plain, ask(self.model, self.steps))
            drawn = self.checker.score(self.model) if self.checker else None
            self.journal.add(key, scores=dataclasses.asdict(scores), drawn=drawn)
        row, ms = self.journal.found[key], self.ms(choice)
        scores, size = Scores(**row["scores"]), self.levels.bytes_of(choice)
        if row.get("drawn") and self.plain_drawn is not None:  # it may have been judged for another budget
            scores = with_drawn(scores, self.plain_drawn, row["drawn"])
        drawn = statistics.mean(row["drawn"]) if row.get("drawn") else None
        point = Point(name, choice, size, text_ms=ms["text"], draw_ms=ms["draw"], scores=scores, drawn=drawn)
        if all(point.choice != other.choice for other in self.points):
            self.points.append(point)
            progress.line(_line(point, self.met(point)))
        return point


def _line(point: Point, met: bool) -> str:
    scores = point.scores
    return (
        f"-[{'✓' if met else 'x'}] {point.name}: {point.size_bytes / 1e6:.1f} MB, perplexity "
        f"{scores.perplexity_percent:+.2f} %, PSNR {scores.psnr_db:.1f} dB"
        + ("" if point.drawn is None else f", drawn rightly {100 * point.drawn:.1f} %")
    )


def _key(what: str, base: Choice, choice: Choice) -> str:
    told = json.dumps([what, sorted(base.items()), sorted(choice.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
