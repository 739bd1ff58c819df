"""Drawings of emoji and icons: would a judge who knows only other artists name them as it names the real pictures?

    seen pairs       label and style were trained together
    held-out pairs   the label was trained in another style, the style with other labels; this picture was withheld
    held-out colors  the drawing was trained in other colours; asked for in words that were never trained

The prompt names label and style.  Each drawing is judged beside the real picture of the same sample at the same size;
the ratio of the two shares says how much of what can be recognised is there.  KID-Lite0 compares both sets' features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.data.format import Dataset
from edgemm.errors import InputError
from edgemm.evaluate.icons_suite import ColoursPart, IconsPart, check_colours, check_icons
from edgemm.evaluate.judge import Eye, Judge, open_judge
from edgemm.evaluate.metrics import Interval, Share, kid, ratio_of_means, share
from edgemm.evaluate.subject import DRAWN_SPLITS, Drawings, Subject, draw_samples, some

__all__ = ["DrawResult", "DrawnPart", "JudgeCard", "run_draw_suite"]


@dataclass(frozen=True)
class JudgeCard:
    """Who judged."""

    styles: tuple[str, ...]
    pictures: int
    candidates: int
    chance: float  # of naming a picture rightly without looking
    sha256: str


@dataclass(frozen=True)
class DrawnPart:
    """The scores of one split."""

    drawn_top1: Share
    real_top1: Share
    top1_ratio: Interval  # drawn over real
    drawn_top5: Share
    real_top5: Share
    kid_lite0: float  # drawings against real pictures
    kid_lite0_real_halves: float  # one half of the real pictures against the other: what "no difference" looks like


@dataclass(frozen=True, eq=False)
class DrawResult:
    judge: JudgeCard
    parts: dict[str, DrawnPart]  # split -> scores
    drawings: dict[str, Drawings]  # split -> what was judged
    icons: dict[str, IconsPart | ColoursPart]  # split -> what the dataset's prompts ask for: colour, ground, way
    records: list[dict[str, Any]]  # one a drawing


def run_draw_suite(
    subject: Subject, dataset: Dataset, limit: int | None, cache: Path, groups: Collection[str] = (), tries: int = 1
) -> DrawResult:
    """At most `limit` prompts a split, of samples in `groups` (none: all), each drawn `tries` times.

    A model that was trained on some groups only has seen no other pair, so it is judged on those.  Raises InputError
    when there is nothing that the judge could name.
    """
    eye = Eye()
    judge = open_judge(dataset, subject.drawing_size, eye, cache)
    parts, drawings, records = {}, {}, []
    icons: dict[str, IconsPart | ColoursPart] = {}
    for split, what in DRAWN_SPLITS.items():
        samples = [sample for sample in dataset.split(split) if not groups or sample.group in groups]
        samples = [sample for sample in samples if sample.label in judge.candidates]
        if not samples:
            continue
        drawings[split] = draw_samples(subject, dataset, some(samples, limit, "id"), -1, what, tries)
        parts[split], rows = _judge(drawings[split], judge, eye)
        records += rows
        named, real_named = (np.array([row[name] == 0 for row in rows]) for name in ("drawn_rank", "real_rank"))
        checked: IconsPart | ColoursPart | None
        if dataset.kind == "icons":
            checked = check_icons(dataset, drawings[split], eye)
        else:
            checked = check_colours(drawings[split], named, real_named)
        icons |= {split: checked} if checked else {}
    if not parts:
        known = ", ".join(sorted({sample.group for sample in dataset.split(*DRAWN_SPLITS)}))
        raise InputError(
            f"{dataset.path}: no picture of {' or '.join(DRAWN_SPLITS)} is in groups {', '.join(groups) or 'at all'} "
            f"with a label that the judge knows; groups: {known}"
        )
    count = len(judge.candidates)
    card = JudgeCard(judge.styles, judge.pictures, count, 1 / count, judge.sha256)
    return DrawResult(card, parts, drawings, icons, records)


def _judge(drawings: Drawings, judge: Judge, eye: Eye) -> tuple[DrawnPart, list[dict[str, Any]]]:
    count, tries = len(drawings.samples) // drawings.tries, drawings.tries
    drawn, real = eye.look(drawings.drawn, "judging"), eye.look(drawings.real[:count], "judging")
    labels = [sample.label for sample in drawings.samples]
    real_ranks = judge.scorer.ranks(real.grids, labels[:count], judge.candidates)
    ranks = {"drawn": judge.scorer.ranks(drawn.grids, labels, judge.candidates), "real": np.tile(real_ranks, tries)}
    half = count // 2
    part = DrawnPart(
        drawn_top1=share(ranks["drawn"] == 0, tries),
        real_top1=share(real_ranks == 0),
        top1_ratio=ratio_of_means((ranks["drawn"] == 0).reshape(tries, count).mean(axis=0), real_ranks == 0),
        drawn_top5=share(ranks["drawn"] < 5, tries),
        real_top5=share(real_ranks < 5),
        kid_lite0=kid(drawn.pooled[:count], real.pooled),  # one drawing a prompt, as there is one real picture
        kid_lite0_real_halves=kid(real.pooled[:half], real.pooled[half:]),
    )
    return part, _records(drawings, ranks)


def _records(drawings: Drawings, ranks: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "sample": sample.id,
            "split": sample.split,
            "prompt": prompt,
            "seed": seed,
            "drawn_rank": int(drawn),  # 0: the judge named it rightly
            "real_rank": int(real),
        }
        for sample, prompt, seed, drawn, real in zip(
            drawings.samples, drawings.prompts, drawings.seeds, ranks["drawn"], ranks["real"]
        )
    ]
