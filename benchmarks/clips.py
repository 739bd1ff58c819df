"""Clips drawn from captions, judged exactly: seen and withheld pairs, another caption, real clips.

    edgemm data clips --fixed --count 4200 --output data/clips-fixed
    python benchmarks/clips.py runs/micro-clips/last/checkpoint data/clips-fixed --limit 140

Prints the share that is right a task and split with its 95 % interval (Wilson), then one JSON line.  CHECKPOINT may be
a bundle, which is then drawn by the runtime.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgemm.bench.conditions import commit, machine_card
from edgemm.data.format import Dataset, Sample, read_dataset
from edgemm.evaluate.clips_suite import check_clip
from edgemm.evaluate.evaluation import open_subject
from edgemm.evaluate.metrics import share
from edgemm.evaluate.subject import DRAWN_SPLITS, DrawSettings, some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, metavar="CHECKPOINT")
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=140, help="clips a split")
    args = parser.parse_args()
    dataset, subject = read_dataset(args.data), open_subject(args.model, DrawSettings(), threads=1)
    rows: dict[str, Any] = {}
    for split, what in DRAWN_SPLITS.items():
        samples = some(dataset.split(split), args.limit, "id")
        drawn = [subject.draw([sample.captions[0]], [seed])[0] for seed, sample in enumerate(samples)]
        rows |= {f"{what}, {name}": found for name, found in _scores(dataset, samples, drawn).items()}
    for name, right in rows.items():
        found = share(right)
        print(f"{name:45} {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of {len(right)}")
    document = {"benchmark": "clips", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    print(
        json.dumps(document | {"model": subject.name, "right": {name: float(np.mean(r)) for name, r in rows.items()}})
    )


def _scores(dataset: Dataset, samples: list[Sample], drawn: list[np.ndarray]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = defaultdict(list)
    others = samples[len(samples) // 2 :] + samples[: len(samples) // 2]
    for sample, other, tall in zip(samples, others, drawn):
        passed = check_clip(_frames(tall), sample.scene or {}).passed
        found["all tasks"].append(passed)
        found[sample.subgroup].append(passed)
        if other.captions != sample.captions:
            found["another clip's caption"].append(check_clip(_frames(tall), other.scene or {}).passed)
        with Image.open(dataset.image_path(sample)) as real:
            found["real clips"].append(check_clip(_frames(np.asarray(real.convert("RGB"))), sample.scene or {}).passed)
    return found


def _frames(tall: np.ndarray) -> np.ndarray:
    """uint8 (f * S, S, 3) -> (f, S, S, 3)."""
    return tall.reshape(-1, tall.shape[1], tall.shape[1], 3)


if __name__ == "__main__":
    main()
