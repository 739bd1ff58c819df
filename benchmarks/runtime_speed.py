"""How fast the runtime is with one bundle or another, one backend or another, and beside torch, in one run.

    python benchmarks/runtime_speed.py int8.bundle w8a8.bundle --checkpoint checkpoints/sticker-small
    python benchmarks/runtime_speed.py fp32.bundle int8.bundle w8a8.bundle --backend fp32.bundle:openvino \
        --backend int8.bundle:transformer=openvino,denoiser=openvino

Configurations are every bundle on ONNX Runtime alone, and a bundle (the first, if none is named) with each `--backend`.
They take turns, each round begins with another one, and each rests before its turn, so that what disturbs one disturbs
all; the table gives medians and their ratio to the first row.
Beside speed stands how far answers are from the first row's: tokens that differ, and the PSNR of a picture of one seed.
A switch of export or quantization is measured as two bundles.  With `--checkpoint` a picture is drawn too as it would
be without this runtime: the same weights in torch, 50 steps with guidance, the prompt computed again at each step.
Growth, start and operators have scripts of their own (runtime_growth.py, runtime_start.py, runtime_profile.py); other
programs are in peers/.  Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import edgemm
from edgemm.bench.conditions import machine_card
from edgemm.bench.workload import fit_prompt, noise_picture
from edgemm.cli.draw import read_backend
from edgemm.runtimes.model import Model

PROMPT = "red heart, fluent style"
WORDS = "The quick brown fox jumps over the lazy dog and runs home."
TEXT = {"max_new_tokens": 32, "ignore_eos": True, "prompt_lookup_num_tokens": 0}  # one token a run
DRAWING_TOKENS = 77  # of the prompt whose reuse is measured, as drawing models are often given
TORCH_STEPS, TORCH_GUIDANCE = 50, 2.0
REST_S = 0.3  # in which the threads of whoever ran before fall asleep
Figures = dict[str, float]


class Work:
    """One configuration, and what it is asked to do."""

    def __init__(self, model: Model, prefill_tokens: int) -> None:
        self.model = model
        most = model.manifest.limits.max_context - 64
        self.long = fit_prompt(self._read, min(prefill_tokens, most))
        self.drawing = fit_prompt(self._drawn_from, min(DRAWING_TOKENS, most))

    def sample(self) -> Figures:
        """Milliseconds of everything, once."""
        model = self.model
        text = model.generate_text("Name a fruit.", **TEXT).metrics
        read = model.generate_text(self.long, max_new_tokens=1).metrics
        seen = model.generate_text("What is this?", images=[noise_picture()], max_new_tokens=1).metrics
        with model.session() as chat:
            chat.generate_text(self.long, max_new_tokens=4)
            turn = chat.generate_text("And?", max_new_tokens=1).metrics
        picture = model.generate_image(PROMPT, seed=1).metrics
        reused = model.generate_image(self.drawing, guidance_scale=1, seed=1).metrics
        again = [
            model.generate_image(self.drawing, guidance_scale=1, seed=1, num_inference_steps=1).metrics
            for _ in range(reused.steps)
        ]
        return {
            "decode, a token": 1e3 / text.decode_tokens_per_s,
            f"prefill, {read.prompt_tokens} tokens": read.prefill_ms,
            "first token about a picture": seen.time_to_first_token_ms,
            "second turn, first token": turn.time_to_first_token_ms,
            "denoiser step": picture.step_ms,
            f"prompt to picture, {picture.steps} steps": picture.total_ms,
            f"picture of a prompt of {reused.prompt_tokens} tokens": reused.total_ms,
            "  the same, prompt computed at each step": sum(metrics.total_ms for metrics in again),
        }

    def adapter(self, name: str) -> Figures:
        """What swapping costs, and what an adapter costs a step and a token; milliseconds."""
        model, found = self.model, {}
        for active in (None, name):
            start = time.perf_counter()
            model.set_adapter(active)
            found[f"swap to {active}"] = 1e3 * (time.perf_counter() - start)
            found[f"step with {active}"] = model.generate_image(PROMPT, seed=1).metrics.step_ms
            text = model.generate_text("Name a fruit.", **TEXT).metrics
            found[f"token with {active}"] = 1e3 / text.decode_tokens_per_s
        return found

    def _read(self, words: str) -> int:
        return self.model.generate_text(words, max_new_tokens=1).metrics.prompt_tokens

    def _drawn_from(self, words: str) -> int:
        return self.model.generate_image(words, num_inference_steps=1, guidance_scale=1).metrics.prompt_tokens


def quality(model: Model, first: Model) -> Figures:
    """Tokens that differ from the first configuration's, and how near its picture is."""
    pairs = [
        [one.generate_text(words, **TEXT).token_ids for one in (model, first)] for words in ("Name a fruit.", WORDS)
    ]
    apart = [sum(a != b for a, b in zip(*pair)) / len(pair[1]) for pair in pairs]
    mine, other = (one.generate_image(PROMPT, seed=1).pixels for one in (model, first))
    error = float(np.square(mine - other).mean())
    return {"tokens_apart": round(float(np.mean(apart)), 4), "psnr_db": round(-10 * np.log10(max(error, 1e-12)), 1)}


class Torch:
    """The checkpoint's own torch model, with nothing of the prompt kept from one step to the next."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch

        from edgemm.model import checkpoint as checkpoints

        torch.set_num_threads(threads)
        self.model = checkpoints.load(checkpoint).requires_grad_(False)
        self.sampler = self.model.with_sampler(num_inference_steps=TORCH_STEPS, guidance_scale=TORCH_GUIDANCE)

    def picture_ms(self) -> float:
        import torch

        from edgemm.model import flow

        model, tokens = self.model, self.model.config.image_tokens
        noise = torch.randn(1, tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(1))
        start = time.perf_counter()
        with torch.no_grad():
            drawn = flow.sample(
                lambda x, t, size: model.denoiser(x, t, model.prefix([PROMPT]), size),
                lambda x, t, size: model.denoiser(x, t, model.prefix([""]), size),
                noise,
                self.sampler,
            )
            model.to_pixels(drawn)
        return 1e3 * (time.perf_counter() - start)


def _path_and_backend(words: str, bundles: list[Path]) -> tuple[Path, str]:
    """Which bundle a --backend is for, and what it says of its components."""
    path, named, backend = words.rpartition(":")
    return (Path(path) if named else bundles[0]), backend


def _turned(names: list[str], by: int) -> list[str]:
    """The same, beginning with another one."""
    return names[by % len(names) :] + names[: by % len(names)]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--backend", action="append", default=[], metavar="[BUNDLE:]COMPONENT=BACKEND,...")
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint of the first bundle, to draw in torch")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="for a first bundle exported with --adapters")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(words)
    asked: dict[str, tuple[Path, Any]] = {str(path): (path, None) for path in args.bundle}
    for given in args.backend:
        path, backend = _path_and_backend(given, args.bundle)
        asked[f"{path} on {backend}"] = path, read_backend(backend)
    torch_ms: list[float] = []
    adapted: list[Figures] = []
    with contextlib.ExitStack() as stack:
        works = {}
        for name, (path, backend) in asked.items():
            model = stack.enter_context(edgemm.load(path, device="cpu", threads=args.threads, backend=backend))
            works[name] = Work(model, args.prefill_tokens)
        first = next(iter(works.values()))
        torch_model = Torch(args.checkpoint, first.model.threads.count) if args.checkpoint else None
        if args.adapter:
            first.model.load_adapter("given", args.adapter)
        samples: dict[str, list[Figures]] = {name: [] for name in works}
        for number in range(args.rounds + 1):
            for name in _turned(list(works), number):
                time.sleep(REST_S)
                sample = works[name].sample()
                samples[name] += [sample] if number else []  # the first round only warms up
            if torch_model and number:
                torch_ms.append(torch_model.picture_ms())
            if args.adapter:
                found = first.adapter("given")
                first.model.set_adapter(None)
                adapted += [found] if number else []
        near = {name: quality(work.model, first.model) for name, work in works.items()}
    base = {
        key: median(sample[key] for sample in next(iter(samples.values()))) for key in next(iter(samples.values()))[0]
    }
    for name, rows in samples.items():
        print(f"\n{name}: {near[name]['tokens_apart']:.1%} of tokens apart, PSNR {near[name]['psnr_db']} dB")
        found = [median(row[key] for row in rows) for key in rows[0]]
        for (key, reference), value in zip(base.items(), found):
            print(f"  {key:<42} {value:>9.2f} ms  {reference / value:>5.2f}x")
        print(f"  {'prefix reuse alone':<42} {found[-1] / found[-2]:>21.2f}x")
        if torch_ms:
            print(f"  {'a picture beside torch, 50 steps, guided':<42} {median(torch_ms) / found[-3]:>21.2f}x")
    if torch_ms:
        print(f"\ntorch, {TORCH_STEPS} steps, guidance {TORCH_GUIDANCE:g}, prompt each step: {median(torch_ms):.0f} ms")
    if adapted:
        print("\nadapter: " + ", ".join(f"{key} {median(each[key] for each in adapted):.3g} ms" for key in adapted[0]))
    document = {"samples": samples, "quality": near, "torch_ms": torch_ms, "adapter": adapted}
    print(json.dumps({"benchmark": "runtime_speed", "card": machine_card(), **document}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
