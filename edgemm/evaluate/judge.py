"""Names a picture: ridge regression from the eye's features to labels, solved in one step.

It is trained on other artists' pictures than those it judges and knows nothing of the model under test.  How often it
names *real* pictures of the judged style is therefore the score that drawings are held against.
It knows arrays and labels, never pictures or files of a dataset: see judge.py and judge.py.
Axes: n pictures, f features, l labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgemm import progress
from edgemm.bundle.beside import written_beside
from edgemm.bundle.files import reading
from edgemm.data.format import Dataset, Sample
from edgemm.errors import InputError
from edgemm.evaluate.subject import real_pictures, resized
from edgemm.model.config import LITE0_CHANNELS
from edgemm.model.vision import Lite0, lite0_weights

__all__ = ["LabelScorer", "GRID_WIDTHS", "Eye", "Looks", "Judge", "not_judged", "open_judge"]

RIDGE = 0.2  # of a picture's own squared length, which is 1; anything from 0.1 to 1 scores within two points
NO_SPREAD = 1e-3  # features that hardly differ between pictures are not blown up


@dataclass(frozen=True, eq=False)
class LabelScorer:
    labels: tuple[str, ...]
    mean: np.ndarray  # (f)
    scale: np.ndarray  # (f)
    weights: np.ndarray  # (f, l)

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence[str], widths: Sequence[int]) -> LabelScorer:
        """From the features (n, f) of named pictures; `widths` are the columns of each kind of feature, and every kind
        counts the same however many columns it has."""
        known = tuple(sorted(set(labels)))
        column = {label: index for index, label in enumerate(known)}
        targets = np.zeros((len(labels), len(known)), dtype=np.float32)
        targets[np.arange(len(labels)), [column[label] for label in labels]] = 1
        mean, spread = features.mean(axis=0), features.std(axis=0) + NO_SPREAD
        scale = spread * np.sqrt(np.repeat(widths, widths)).astype(np.float32)
        x = _unit((features - mean) / scale)
        # Fewer pictures than features: the dual form (x x' + r) is the smaller system.
        weights = x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x), dtype=np.float32), targets)
        return cls(known, mean, scale, weights)

    def scores(self, features: np.ndarray, candidates: Sequence[str]) -> np.ndarray:
        """(n, f) -> (n, candidates): the higher, the likelier."""
        column = {label: index for index, label in enumerate(self.labels)}
        return _unit((features - self.mean) / self.scale) @ self.weights[:, [column[label] for label in candidates]]

    def ranks(self, features: np.ndarray, labels: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """How many other candidates score as high as each picture's own label, (n): 0 where it is named rightly."""
        place = {label: index for index, label in enumerate(candidates)}
        scores = self.scores(features, candidates)
        own = scores[np.arange(len(scores)), [place[label] for label in labels]]
        return (scores >= own[:, None]).sum(axis=1) - 1

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        with written_beside(path) as temporary, open(temporary, "rb+") as stream:
            weights = self.weights.astype(np.float16)
            np.savez(stream, labels=np.array(self.labels), mean=self.mean, scale=self.scale, weights=weights)

    @classmethod
    def load(cls, path: Path) -> LabelScorer:
        with reading(path, "no scorer that was stored; delete it and it is trained again"):
            with np.load(path, allow_pickle=False) as stored:
                labels = tuple(map(str, stored["labels"]))
                return cls(labels, stored["mean"], stored["scale"], stored["weights"].astype(np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-6)


# What the judges look with: EfficientNet-Lite0, frozen, as it was trained on photographs.
#
# Three depths are kept, because they see different things: the outline of a drawing, its parts, and what it is.  Each
# feature map is averaged onto a 4 x 4 grid, that of the last one.  The last layer's mean is what KID-Lite0 compares.
# torch is needed here; judge.py, which judges, is numpy alone.
# Axes: b pictures, S side.

SIDE = 128  # pixels; smaller pictures are enlarged: Lite0 was made for 224 and sees little in 64
DEPTHS = (7, 10, 14)  # the last block of three stages
SQUARES = (SIDE // 32) ** 2
GRID_WIDTHS = tuple(LITE0_CHANNELS[depth] * SQUARES for depth in DEPTHS)  # columns of `grids`, a depth after the other
BATCH = 32


@dataclass(frozen=True, eq=False)
class Looks:
    """What the eye sees of b pictures."""

    grids: np.ndarray  # (b, sum(GRID_WIDTHS)) float32: three depths on a grid
    pooled: np.ndarray  # (b, 1280) float32: the last layer's mean


class Eye:
    def __init__(self) -> None:
        self.net = Lite0(DEPTHS).eval()
        self.net.load_state_dict(lite0_weights())

    def look(self, pictures: np.ndarray, what: str = "looking") -> Looks:
        """At uint8 (b, S, S, 3)."""
        seen = []
        for start in progress.track(range(0, len(pictures), BATCH), -(-len(pictures) // BATCH), what, "batches"):
            chunk = torch.from_numpy(resized(pictures[start : start + BATCH], SIDE).transpose(0, 3, 1, 2).copy())
            seen.append(self._look(chunk.float() / 255))
        grids, pooled = zip(*seen)
        return Looks(np.concatenate(grids), np.concatenate(pooled))

    @torch.no_grad()
    def _look(self, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        features = self.net(pixels).transpose(1, 2)  # (b, channels, squares)
        middle = sum(LITE0_CHANNELS[depth] for depth in DEPTHS)
        return features[:, :middle].flatten(1).numpy(), features[:, middle:].mean(-1).numpy()


# The LabelScorer of a dataset: trained once, then kept under the hash of everything that it was trained on.

RECIPE = "1"  # of judge.py and judge.py together; counted up when a score may change


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
    own = not_judged(dataset)
    judged = {sample.style for sample in dataset.split("train")}
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


def not_judged(dataset: Dataset) -> list[Sample]:
    """The samples of styles that have no training pictures. Raises InputError where there is none."""
    judged = {sample.style for sample in dataset.split("train")}
    own = [sample for sample in dataset.samples if sample.style not in judged]
    if not own:
        raise InputError(
            f"{dataset.path}: every style is one that models train on, so nobody is left to train a judge on; "
            "rebuild it with: edgemm data emoji --styles fluent noto noto-v1 twemoji"
        )
    return own


def _hash(dataset: Dataset, samples: Sequence[Sample], size: int) -> str:
    digest = hashlib.sha256(f"{RECIPE} {size}".encode())
    for sample in samples:
        picture = hashlib.sha256(dataset.image_path(sample).read_bytes()).hexdigest()
        digest.update(f"\n{sample.id}\t{sample.label}\t{picture}".encode())
    return digest.hexdigest()
