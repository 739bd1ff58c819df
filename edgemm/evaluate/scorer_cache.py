"""The LabelScorer of a dataset: trained once, then kept under the hash of everything that it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm.data.format import Dataset, Sample
from edgemm.errors import InputError
from edgemm.evaluate.eye import GRID_WIDTHS, Eye
from edgemm.evaluate.label_scorer import LabelScorer
from edgemm.evaluate.pictures import real_pictures

__all__ = ["Judge", "open_judge"]

RECIPE = "1"  # of eye.py and label_scorer.py together; counted up when a score may change


@dataclass(frozen=True, eq=False)
class Judge:
    """A scorer and how it came to be."""

    scorer: LabelScorer
    styles: tuple[str, ...]  # whose pictures it was trained on
    pictures: int
    candidates: tuple[str, ...]  # labels that it chooses among: those that it and the judged styles both have
    sha256: str  # of its training pictures, their labels, the size and the recipe


def open_judge(dataset: Dataset, size: int, eye: Eye, cache: Path) -> Judge:
    """For drawings of `size` pixels a side: its own pictures are brought to that size too.

    The judged styles are those that have training pictures; it is trained on all the others.
    """
    judged = {sample.style for sample in dataset.split("train")}
    own = [sample for sample in dataset.samples if sample.style not in judged]
    if not own:
        raise InputError(
            f"{dataset.path}: every style is one that models train on, so nobody is left to train a judge on; "
            "rebuild it with: edgemm data emoji --styles fluent noto noto-v1 twemoji"
        )
    key = _hash(dataset, own, size)
    file = cache / f"label-scorer-{key[:16]}.npz"
    if file.is_file():
        scorer = LabelScorer.load(file)
    else:
        looks = eye.look(real_pictures(dataset, own, size), "training the judge")
        LabelScorer.fit(looks.grids, [sample.label for sample in own], GRID_WIDTHS).save(file)
        scorer = LabelScorer.load(file)  # as stored, so that the first run scores like the second
    drawn = {sample.label for sample in dataset.samples if sample.style in judged}
    candidates = tuple(sorted(drawn & set(scorer.labels)))
    return Judge(scorer, tuple(sorted({sample.style for sample in own})), len(own), candidates, key)


def _hash(dataset: Dataset, samples: Sequence[Sample], size: int) -> str:
    digest = hashlib.sha256(f"{RECIPE} {size}".encode())
    for sample in samples:
        picture = hashlib.sha256(dataset.image_path(sample).read_bytes()).hexdigest()
        digest.update(f"\n{sample.id}\t{sample.label}\t{picture}".encode())
    return digest.hexdigest()
