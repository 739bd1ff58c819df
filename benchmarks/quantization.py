"""What each precision costs in quality, before any export: one table a checkpoint, written row by row.

    python benchmarks/quantization.py checkpoints/sticker-small checkpoints/sticker-nano --data data/emoji128 \\
        --output benchmarks/results/quantization.json

Perplexity and tokens alike are on a chapter of a public-domain book; PSNR and SSIM on drawings from the same noise.
With `--data`, every model answers the dataset's questions and draws its captions: shares that are right, with the
paired difference to float32.  Rows that `--output` already holds for the same weights and settings are not measured
again, so it may be stopped at any time.  Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import edgemm
from edgemm.evaluate.compare import compare_records, paired_difference
from edgemm.measure.card import machine_card
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.quantize.judges import Answers, ask, compare
from edgemm.quantize.quantization import SUITED, quantize
from edgemm.quantize.quantized_linear import swap
from edgemm.quantize.report import size_bytes
from edgemm.quantize.task_scores import Records, task_records

STEPS = 4
ROWS: dict[str, tuple[str, str, str | None, str]] = {  # name -> text, draw, method (None: its own), the bar
    "fp32": ("fp32", "fp32", None, ""),
    "fp16": ("fp16", "fp16", None, ""),
    "int8": ("int8", "int8", None, "ppl <= +0.5 %, tasks >= 99.9 %, PSNR >= 30, SSIM >= 0.97"),
    "int4": ("int4", "int8", None, "ppl <= +8 %, tasks >= 99 %"),
    "w4a8": ("w8a8", "w4a8", None, "ppl <= +2 %, PSNR >= 24"),
}
METHODS: dict[str, tuple[str, str, str | None, str]] = {  # one path each, the other in float
    "text int8 rtn": ("int8", "fp16", "rtn", ""),
    "text w8a8 rtn": ("w8a8", "fp16", "rtn", ""),
    "text int4 rtn": ("int4", "fp16", "rtn", ""),
    "text int4 k-quant": ("int4", "fp16", "kquant", ""),
    "text int4 gptq": ("int4", "fp16", "gptq", ""),
    "text int4 awq+gptq": ("int4", "fp16", "awq+gptq", ""),
    "draw int8 rtn": ("fp16", "int8", "rtn", ""),
    "draw w4a8 rtn": ("fp16", "w4a8", "rtn", ""),
    "draw w4a8 k-quant": ("fp16", "w4a8", "kquant", ""),
}
HEAD = (
    f"{'':20} {'made in':>9} {'MB':>6} {'ppl':>8} {'':>8} {'alike':>6} {'PSNR':>6} {'SSIM':>7} "
    f"{'read':>6} {'drawn':>6}  bar"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *METHODS], default=list(ROWS))
    parser.add_argument(
        "--data", type=Path, help="a dataset made by `edgemm data`: its questions and captions are tasks"
    )
    parser.add_argument("--limit", type=int, default=50, help="questions a kind and drawings a split")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    document = _document(args)
    for path in args.checkpoints:
        print(f"{path.name}\n{HEAD}")
        Table(path, document, args).fill(args.rows)
    print(json.dumps(document))


def _document(args: argparse.Namespace) -> dict[str, Any]:
    settings = {"steps": args.steps, "data": args.data.name if args.data else None, "limit": args.limit}
    if args.output and args.output.exists():
        before = json.loads(args.output.read_text())
        if before.get("settings") == settings:
            return before
    about = {"benchmark": "quantization", "edgemm": edgemm.__version__, "machine": machine_card()}
    return {**about, "settings": settings, "checkpoints": {}}


class Table:
    """The rows of one checkpoint; what float32 says and does is asked once, and only if a row is missing."""

    def __init__(self, path: Path, document: dict[str, Any], args: argparse.Namespace) -> None:
        self.path, self.document, self.args = path, document, args
        sha256 = checkpoint.weights_hash(path)
        known = document["checkpoints"].get(path.name)
        if known is None or known["sha256"] != sha256:
            known = document["checkpoints"][path.name] = {"sha256": sha256, "rows": {}}
        self.rows: dict[str, Any] = known["rows"]
        self.plain: tuple[Answers, Records] | None = None

    def fill(self, names: list[str]) -> None:
        for name in names:
            if name not in self.rows:
                self.rows[name] = self._measure(name)
                if self.args.output:
                    self.args.output.write_text(json.dumps(self.document, indent=1) + "\n")
            print(_line(name, self.rows[name]), flush=True)

    def _measure(self, name: str) -> dict[str, Any]:
        text, draw, method, bar = {**ROWS, **METHODS}[name]
        if self.plain is None:
            self.plain = self._ask(checkpoint.load(self.path))
        plain, tasks = self.plain
        model, size = checkpoint.load(self.path), 0
        began = time.monotonic()
        if name in ("fp32", "fp16"):
            for tensor in (*model.parameters(), *model.buffers()):
                if name == "fp16" and tensor.is_floating_point():
                    tensor.data = tensor.data.half().float()
            size = sum(parameter.numel() for parameter in model.parameters()) * (4 if name == "fp32" else 2)
        else:
            chosen = {"text": method, "draw": method} if method else {"text": SUITED[text], "draw": SUITED[draw]}
            spec = quantize(model, text, draw, chosen, steps=self.args.steps)
            swap(model, spec, folded=True)
            size = size_bytes(spec)
        seconds = time.monotonic() - began
        answers, done = self.plain if name == "fp32" else self._ask(model)
        told = {"text": text, "draw": draw, "method": method, "bar": bar, "size_bytes": size, "made_in_s": seconds}
        return {**told, **compare(plain, answers).to_json(), "tasks": _tasks(tasks, done)}

    def _ask(self, model: Unified) -> tuple[Answers, Records]:
        tasks = task_records(model, self.args.data, self.args.limit, self.args.steps) if self.args.data else {}
        return ask(model, self.args.steps), tasks


def _tasks(plain: Records, found: Records) -> dict[str, Any]:
    """All questions, all drawings, and each kind by itself: both means and the paired difference."""
    if not plain:
        return {}
    right = {
        "read": [[float(row["right"]) for row in side["reading"]] for side in (plain, found)],
        "drawn": [[float(row["drawn_rank"] == 0) for row in side["drawing"]] for side in (plain, found)],
    }
    whole = {name: asdict(paired_difference(*pair)) for name, pair in right.items()}
    return {**whole, "kinds": {name: asdict(value) for name, value in compare_records(plain, found).items()}}


def _line(name: str, row: dict[str, Any]) -> str:
    tasks = "".join(
        f" {100 * row['tasks'][part]['second']:5.1f}%" if row["tasks"] else f" {'':6}" for part in ("read", "drawn")
    )
    return (
        f"{name:20} {row['made_in_s']:7.1f} s {row['size_bytes'] / 1e6:6.1f} {row['perplexity']:8.3f} "
        f"{row['perplexity_percent']:+7.2f}% {100 * row['token_agreement']:5.1f}% {row['psnr_db']:6.1f} "
        f"{row['ssim']:7.4f}{tasks}  {row['bar']}"
    )


if __name__ == "__main__":
    main()
