"""Does a bundle say and draw what torch says and draws?  The long version of the check inside `edgemm export`.

    python benchmarks/parity.py checkpoints/sticker-small --precision fp32 int8

64 greedy tokens for 8 prompts, half of them about a picture, and 4 drawings from the same noise with the model's
default sampler.  Stop tokens are left out, so every reply has its 64.  Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemm.bench.conditions import machine_card
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.picture import load_picture
from edgemm.data.format import read_dataset
from edgemm.model import checkpoint
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.engines import Engines, select
from edgemm.runtimes.model import Model
from edgemm.verify.export_native import export_bundle

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "emoji64"
TEXTS = ("Why is the sky blue?", "Write a short poem about the sea.", "List three fruits.", "What is 12 plus 30?")
QUESTIONS = ("What is this?", "Describe the picture.", "Which colours do you see?", "Is this an animal?")
DRAWINGS = ("red heart", "pizza, noto style", "rocket", "dog face, fluent style")
TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    args = parser.parse_args()
    model = checkpoint.load(args.checkpoint)
    pictures = [FIXTURE / s.image for s in read_dataset(FIXTURE).samples if s.split == "held-out-style"][::20][:4]
    cases: list[tuple[str, Path | None]] = [(t, None) for t in TEXTS] + list(zip(QUESTIONS, pictures, strict=True))
    size, background = model.config.vision.image_size, model.config.background
    replies = []
    for prompt, picture in cases:
        pixels = None
        if picture is not None:
            pixels = torch.from_numpy(load_picture(picture, size, background, 10**7))[None]
        replies.append(model.generate(prompt, pixels, TOKENS, stop=False)[0])
    tokens = model.config.image_tokens
    noises = [schedule.initial_noise(seed, tokens.token_count, tokens.token_width) for seed in range(len(DRAWINGS))]
    drawn = [model.draw([p], torch.from_numpy(n)[None])[0].numpy() for p, n in zip(DRAWINGS, noises, strict=True)]
    results = [_compare(args.checkpoint, precision, cases, replies, noises, drawn) for precision in args.precision]
    print(f"{'precision':9} {'tokens equal':>14} {'before the first flip':>22} {'max pixel diff':>15} {'PSNR dB':>9}")
    for row in results:
        equal = f"{row['tokens_equal']}/{row['tokens']}"
        print(
            f"{row['precision']:9} {equal:>14} {row['share_before_flip']:>21.1%} "
            f"{row['max_pixel_difference']:>15.2e} {row['psnr_db_min']:>9.1f}"
        )
    print(json.dumps({"benchmark": "parity", "card": machine_card(), "results": results}))


def _compare(
    source: Path,
    precision: str,
    cases: list[tuple[str, Path | None]],
    replies: list[list[int]],
    noises: list[np.ndarray],
    drawn: list[np.ndarray],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "parity.bundle"
        export_bundle(source, bundle, precision=precision)
        with _unstopped(bundle) as runtime:
            found = [
                runtime.generate_text(p, images=[picture] if picture else [], max_new_tokens=TOKENS).token_ids
                for p, picture in cases
            ]
            pixels = [runtime.generate_image(p, noise=n).pixels for p, n in zip(DRAWINGS, noises, strict=True)]
    flips = [_first_flip(a, b) for a, b in zip(found, replies, strict=True)]
    wanted = sum(len(reply) for reply in replies)
    errors = [float(np.square(a - b).mean()) for a, b in zip(pixels, drawn, strict=True)]
    return {
        "precision": precision,
        "tokens": wanted,
        "tokens_equal": sum(a == b for x, y in zip(found, replies, strict=True) for a, b in zip(x, y, strict=False)),
        "share_before_flip": sum(flips) / wanted,
        "replies_identical": sum(list(a) == list(b) for a, b in zip(found, replies, strict=True)),
        "max_pixel_difference": max(float(np.abs(a - b).max()) for a, b in zip(pixels, drawn, strict=True)),
        "psnr_db_min": min(99.0 if e == 0 else -10 * float(np.log10(e)) for e in errors),
    }


def _unstopped(path: Path) -> Model:
    """The bundle's runtime without stop tokens: every reply has all its tokens, as torch's has here."""
    bundle = open_bundle(path)
    text = dataclasses.replace(bundle.manifest.loops.text, stop_token_ids=())
    loops = dataclasses.replace(bundle.manifest.loops, text=text)
    manifest = dataclasses.replace(bundle.manifest, loops=loops)
    return Model(
        Engines(dataclasses.replace(bundle, manifest=manifest), select("cpu", manifest.targets), plan_threads())
    )


def _first_flip(found: tuple[int, ...], wanted: list[int]) -> int:
    for place, (a, b) in enumerate(zip(found, wanted, strict=False)):
        if a != b:
            return place
    return min(len(found), len(wanted))


if __name__ == "__main__":
    main()
