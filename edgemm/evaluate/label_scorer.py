"""Names a picture: ridge regression from the eye's features to labels, solved in one step.

It is trained on other artists' pictures than those it judges and knows nothing of the model under test.  How often it
names *real* pictures of the judged style is therefore the score that drawings are held against.
It knows arrays and labels, never pictures or files of a dataset: see eye.py and scorer_cache.py.
Axes: n pictures, f features, l labels.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemm.errors import InputError

__all__ = ["LabelScorer"]

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
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with open(temporary, "xb") as stream:
                weights = self.weights.astype(np.float16)
                np.savez(stream, labels=np.array(self.labels), mean=self.mean, scale=self.scale, weights=weights)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> LabelScorer:
        try:
            with np.load(path, allow_pickle=False) as stored:
                labels = tuple(map(str, stored["labels"]))
                return cls(labels, stored["mean"], stored["scale"], stored["weights"].astype(np.float32))
        except (KeyError, ValueError, OSError, EOFError) as error:
            raise InputError(f"{path}: not a stored scorer ({error}); delete it and it is trained again") from error


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-6)
