"""How fast the runtime is with one backend or another, in one run, and how it grows.

    python benchmarks/runtime_speed.py sticker.bundle --backend denoiser=openvino-bf16,image_decoder=openvino

Every figure is measured with each configuration in turn, round after round, so that what disturbs one disturbs all; the
table gives medians and their ratio to the first row, which is ONNX Runtime alone.  Beside speed stands how far its
answers are from the first row's: tokens that differ, and the PSNR of a picture of the same seed.  Peers have scripts of
their own (benchmarks/peers); what one operator takes is `edgemm bench`.  Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import edgemm
from edgemm.measure.card import machine_card
from edgemm.runtimes.model import Model
from edgemm.runtimes.model_arguments import read_backend

PROMPT = "red heart, fluent style"
WORDS = "The quick brown fox jumps over the lazy dog and runs home. "
TEXT = {"max_new_tokens": 32, "ignore_eos": True}
RUNTIME_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "pillow")
START = """
import time; began = time.perf_counter()
import edgemm; imported = time.perf_counter() - began
model = edgemm.load({path!r}, device="cpu"); model.prepare(); loaded = time.perf_counter() - began - imported
print(imported, loaded)
"""


def figures(model: Model, long_prompt: str) -> dict[str, float]:
    """One sample of everything; milliseconds."""
    text = model.generate_text("Name a fruit.", **TEXT).metrics
    read = model.generate_text(long_prompt, max_new_tokens=1).metrics
    picture = model.generate_image(PROMPT, seed=1).metrics
    with model.session() as chat:
        chat.generate_text(long_prompt, max_new_tokens=4)
        turn = chat.generate_text("And?", max_new_tokens=1).metrics
    once = picture.prefill_ms + picture.conditioner_ms
    steps = picture.steps * picture.step_ms
    return {
        "decode, a token": 1e3 / text.decode_tokens_per_s,
        f"prefill, {read.prompt_tokens} tokens": read.prefill_ms,
        "second turn, first token": turn.time_to_first_token_ms,
        "denoiser step": picture.step_ms,
        f"prompt to picture, {picture.steps} steps": picture.total_ms,
        "  without prefix reuse (from its parts)": picture.total_ms + (picture.steps - 1) * once if steps else 0.0,
    }


def growth(model: Model, rounds: int) -> dict[str, dict[int, float]]:
    """What grows with what; medians in milliseconds."""
    most = model.manifest.limits.max_context

    def timed(sizes: tuple[int, ...], run: Callable[[int], float]) -> dict[int, float]:
        return {size: round(median(run(size) for _ in range(rounds)), 3) for size in sizes}

    def batch(rows: int) -> float:
        done = model.generate_texts(["Name a fruit."] * rows, **TEXT)[0].metrics
        return 1e3 / done.decode_tokens_per_s / rows

    def prefill(tokens: int) -> float:
        return model.generate_text(prompt_of(model, tokens), max_new_tokens=1).metrics.prefill_ms

    lengths = tuple(n for n in (64, 128, 256, 512, 1024, 1536) if n < most)
    return {
        "prefill, ms by prompt tokens": timed(lengths, prefill),
        "batch, ms a token and row": timed((1, 2, 4, 8), batch),
        "picture, ms by steps": timed(
            (1, 2, 4, 8, 16), lambda n: model.generate_image(PROMPT, num_inference_steps=n).metrics.total_ms
        ),
    }


def prompt_of(model: Model, tokens: int) -> str:
    """Words that take about so many tokens with their template."""
    each = max(1, len(model.tokenizer.encode(WORDS * 4)) // 4)
    around = model.generate_text("x", max_new_tokens=1).metrics.prompt_tokens
    return WORDS * max(1, (tokens - around) // each)


def quality(model: Model, first: Model) -> dict[str, float]:
    """Tokens that differ from the first configuration's, and how near its picture is."""
    pairs = [[one.generate_text("Name a fruit.", **TEXT).token_ids for one in (model, first)]]
    pairs += [[one.generate_text(WORDS, **TEXT).token_ids for one in (model, first)]]
    apart = [sum(a != b for a, b in zip(*pair)) / len(pair[1]) for pair in pairs]
    mine, other = (one.generate_image(PROMPT, seed=1).pixels for one in (model, first))
    error = float(np.square(mine - other).mean())
    return {"tokens_apart": round(float(np.mean(apart)), 4), "psnr_db": round(-10 * np.log10(max(error, 1e-12)), 1)}


def start(path: Path, rounds: int) -> dict[str, float]:
    """Import, then load with every engine, each time in a new process; seconds."""
    command = [sys.executable, "-c", START.format(path=str(path))]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(rounds)]
    imported, loaded = (median(float(run[i]) for run in runs) for i in (0, 1))
    installed = sum(
        file.locate().stat().st_size
        for name in RUNTIME_PACKAGES
        for file in importlib.metadata.files(name) or ()
        if Path(str(file.locate())).is_file()
    )
    return {"import_s": round(imported, 3), "load_s": round(loaded, 3), "installed_mb": round(installed / 1e6)}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", action="append", default=[], metavar="COMPONENT=BACKEND,...")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(words)
    asked: dict[str, Any] = {"onnxruntime": None} | {words: read_backend(words) for words in args.backend}
    with contextlib.ExitStack() as stack:
        models = {
            name: stack.enter_context(edgemm.load(args.bundle, device="cpu", threads=args.threads, backend=backend))
            for name, backend in asked.items()
        }
        first = models["onnxruntime"]
        long_prompt = prompt_of(first, min(args.prefill_tokens, first.manifest.limits.max_context - 64))
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for number in range(args.rounds + 1):
            for name, model in models.items():
                sample = figures(model, long_prompt)
                samples[name] += [sample] if number else []  # the first round only warms up
        near = {name: quality(model, first) for name, model in models.items()}
        grown = growth(first, args.rounds)
    base = {key: median(sample[key] for sample in samples["onnxruntime"]) for key in samples["onnxruntime"][0]}
    for name, rows in samples.items():
        print(f"\n{name}: {near[name]['tokens_apart']:.1%} of tokens apart, PSNR {near[name]['psnr_db']} dB")
        for key, reference in base.items():
            found = median(row[key] for row in rows)
            print(f"  {key:<42} {found:>9.2f} ms  {reference / found:>5.2f}x")
    for key, values in grown.items():
        print(f"\n{key}: " + ", ".join(f"{size}: {value:g}" for size, value in values.items()))
    begun = start(args.bundle, min(args.rounds, 3))
    print(f"\nimport {begun['import_s']} s, load {begun['load_s']} s, installed {begun['installed_mb']} MB")
    document = {"samples": samples, "quality": near, "growth": grown, "start": begun, "machine": machine_card()}
    print(json.dumps(document, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
