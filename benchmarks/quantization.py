"""What each precision and method costs in quality: perplexity, tokens alike, PSNR and SSIM, before any export.

    python benchmarks/quantization.py checkpoints/sticker-small --output benchmarks/results/quantization.json

Text rows leave drawing in float and drawing rows leave the text: each path is judged alone.  Prints a table with the
bars of the project, then one JSON line.  `--rows` picks some of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import edgemm
from edgemm.measure.card import machine_card
from edgemm.model import checkpoint
from edgemm.quantize.judges import Answers, Scores, ask, compare
from edgemm.quantize.quantization import quantize
from edgemm.quantize.quantized_linear import swap
from edgemm.quantize.report import size_bytes

STEPS = 4
ROWS = {  # name -> text, draw, method, the bar
    "text int8": ("int8", "fp16", "", "ppl <= +0.5 %"),
    "text w8a8": ("w8a8", "fp16", "", ""),
    "text w8a8 smoothed": ("w8a8", "fp16", "smoothquant", "ppl <= +2 %"),
    "text int4 rtn": ("int4", "fp16", "rtn", ""),
    "text int4 k-quant": ("int4", "fp16", "kquant", ""),
    "text int4 awq+gptq": ("int4", "fp16", "awq+gptq", "ppl <= +8 %"),
    "draw int8": ("fp16", "int8", "", ""),
    "draw int8 smoothed": ("fp16", "int8", "smoothquant", "PSNR >= 30, SSIM >= 0.97"),
    "draw w4a8": ("fp16", "w4a8", "", ""),
    "draw w4a8 smoothed, branch": ("fp16", "w4a8", "smoothquant+svd", "PSNR >= 24"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    plain = ask(checkpoint.load(args.checkpoint), STEPS)
    print(f"{'':28} {'made in':>9} {'MB':>6} {'ppl':>8} {'':>8} {'alike':>7} {'PSNR':>6} {'worst':>6} {'SSIM':>7}  bar")
    rows = [_row(args.checkpoint, name, plain) for name in args.rows]
    document = {
        "benchmark": "quantization",
        "edgemm": edgemm.__version__,
        "checkpoint": args.checkpoint.name,
        "checkpoint_sha256": checkpoint.weights_hash(args.checkpoint),
        "steps": STEPS,
        "machine": machine_card(),
        "rows": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def _row(path: Path, name: str, plain: Answers) -> dict[str, Any]:
    text, draw, method, bar = ROWS[name]
    model = checkpoint.load(path)
    began = time.monotonic()
    spec = quantize(model, text, draw, {"text": method, "draw": method}, steps=STEPS)
    seconds = time.monotonic() - began
    swap(model, spec, folded=True)
    scores: Scores = compare(plain, ask(model, STEPS))
    size = size_bytes(spec)
    print(
        f"{name:28} {seconds:7.1f} s {size / 1e6:6.1f} {scores.perplexity:8.3f} {scores.perplexity_percent:+7.2f}% "
        f"{100 * scores.token_agreement:6.1f}% {scores.psnr_db:6.1f} {scores.psnr_worst_db:6.1f} {scores.ssim:7.4f}  "
        f"{bar}",
        flush=True,
    )
    told = {"text": text, "draw": draw, "method": method, "bar": bar, "size_bytes": size}
    return {"name": name, **told, **scores.to_json()}


if __name__ == "__main__":
    main()
