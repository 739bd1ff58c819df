"""How the runtime's time grows with prompt, pictures, batch and steps: four curves, and a picture of them.

    python benchmarks/runtime_growth.py sticker.bundle --json growth.json --svg docs/runtime-growth.svg

Medians of a few rounds; every size is tried once in each round, so that what disturbs one disturbs all.  Image tokens
are those of pictures in the prompt.  Prints the points, then one JSON line with every sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import edgemm
from edgemm.bench.conditions import machine_card
from edgemm.bench.workload import fit_prompt, noise_picture
from edgemm.report.svg import Axis, Plot
from edgemm.runtimes.model import Model

PROMPT = "red heart, fluent style"
STYLE = (
    "<style>svg{font:11px sans-serif;background:#fff}.grid{stroke:#ddd}.frame{stroke:#888}.tick,.axis,.note{fill:#444}"
    ".line{fill:none;stroke:#2563eb;stroke-width:2}.dot{fill:#2563eb}</style>"
)


@dataclass(frozen=True)
class Curve:
    name: str
    x: str
    sizes: tuple[int, ...]
    ms: Callable[[int], float]
    log: bool = True


def curves(model: Model) -> list[Curve]:
    most = model.manifest.limits.max_context - 32
    text = model.manifest.loops.text
    prompts: dict[int, str] = {}

    def length(words: str) -> int:
        return model.generate_text(words, max_new_tokens=1).metrics.prompt_tokens

    def prefill(tokens: int) -> float:
        if tokens not in prompts:
            prompts[tokens] = fit_prompt(length, tokens)
        return model.generate_text(prompts[tokens], max_new_tokens=1).metrics.prefill_ms

    def pictured(pictures: int) -> float:
        found = model.generate_text("What?", images=[noise_picture()] * pictures, max_new_tokens=1).metrics
        return found.prefill_ms

    def batch(rows: int) -> float:
        done = model.generate_texts(["Name a fruit."] * rows, max_new_tokens=16, ignore_eos=True)[0].metrics
        return 1e3 / done.decode_tokens_per_s / rows

    def drawn(steps: int) -> float:
        return model.generate_image(PROMPT, num_inference_steps=steps).metrics.total_ms

    found = []
    if text is not None:
        lengths = tuple(n for n in (32, 64, 128, 256, 512, 1024, 1536) if n < most)
        found.append(Curve("prefill by prompt", "prompt tokens", lengths, prefill))
        block = text.image_token_count
        counts = sorted({round(n / block) for n in (64, 128, 256, 512, 1024) if block <= n < most - 64})
        if "image_encoder" in model._engines and counts:
            found.append(Curve("prefill by pictures", f"pictures of {block} image tokens", tuple(counts), pictured))
        found.append(Curve("batch, a token and row", "rows", (1, 2, 4, 8), batch))
    if model.manifest.loops.denoise is not None:
        found.append(Curve("picture by steps", "steps", (1, 2, 4, 8, 16, 32), drawn, log=False))
    return found


def picture_of(found: dict[str, dict[int, list[float]]], drawn: list[Curve]) -> str:
    """All curves in one SVG, below one another."""
    parts, height = [], 280
    for place, curve in enumerate(drawn):
        points = [(float(size), median(samples)) for size, samples in found[curve.name].items()]
        top = max(y for _, y in points)
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        plot = Plot(curve.name, Axis(curve.x, low, high, log=curve.log), Axis(f"{curve.name}, ms", 0, 1.1 * top))
        plot.line(points, "s0")
        for x, y in points:
            plot.dot(x, y, "s0", f"{x:g}: {y:.3g} ms")
        inner = plot.render().partition(">")[2].rpartition("</svg>")[0]
        parts.append(f'<g transform="translate(0 {place * height})">{inner}</g>')
    size = f'viewBox="0 0 520 {height * len(parts)}" width="520" height="{height * len(parts)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{"".join(parts)}</svg>\n'


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the last line, in a file too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the curves")
    args = parser.parse_args(words)
    found: dict[str, dict[int, list[float]]] = {}
    with edgemm.load(args.bundle, device="cpu", threads=args.threads) as model:
        drawn = curves(model)
        for number in range(args.rounds + 1):
            for curve in drawn:
                for size in curve.sizes:
                    taken = curve.ms(size)
                    if number:  # the first round only warms up
                        found.setdefault(curve.name, {}).setdefault(size, []).append(round(taken, 3))
    for name, sizes in found.items():
        print(f"{name}, ms: " + ", ".join(f"{size}: {median(samples):.4g}" for size, samples in sizes.items()))
    document = json.dumps({"benchmark": "runtime_growth", "card": machine_card(), "samples": found})
    if args.svg:
        args.svg.write_text(picture_of(found, drawn))
    if args.json:
        args.json.write_text(document + "\n")
    print(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
