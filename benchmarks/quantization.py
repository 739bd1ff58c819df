"""What each precision costs in quality, before any export: one table a checkpoint, written row by row.

    edgemm data emoji --output data/emoji128 --size 128 --styles fluent noto noto-v1 twemoji
    python benchmarks/quantization.py checkpoints/sticker-small checkpoints/sticker-nano --data data/emoji128 \\
        --output benchmarks/results/quantization.json

Perplexity and tokens alike are on a chapter of a public-domain book; PSNR and SSIM on six drawings from the same noise.
With `--data`, every model answers the dataset's questions and draws its captions: shares that are right, and the
paired difference to float32 with its 95 % interval.  float32 is asked once a checkpoint.  `--suites read --limit 120`
asks more questions and draws nothing: a thousandth of a score needs hundreds.  Rows that `--output` already
holds for the same weights and settings are not measured again, so it may be stopped at any time.
No figure here is a time, so other work on the machine spoils nothing.  Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgemm
from edgemm.bench.conditions import machine_card
from edgemm.evaluate.evaluation import SUITES
from edgemm.evaluate.metrics import compare_records, paired_difference
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.search.judges import PROMPTS, Answers, Records, ask, compare, task_records
from edgemm.search.levels import size_bytes

STEPS = 4
HALVED = ("image_encoder.", "conditioner.")  # what stays in float there is stored in float16 (lower_cpu.py)
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects", "smileys-emotion")


@dataclass(frozen=True)
class Row:
    text: str
    draw: str
    method: str | None = None  # of both sides; None: what suits each precision
    bars: tuple[tuple[str, str, float], ...] = ()  # figure, at least or at most, limit


PERPLEXITY, TASKS, PSNR, SSIM = "perplexity_percent", "read_percent", "psnr_db", "ssim"
DRAWN_WELL = ((PSNR, ">=", 30.0), (SSIM, ">=", 0.97))
ROWS = {
    "fp32": Row("fp32", "fp32"),
    "fp16": Row("fp16", "fp16"),
    "int8": Row("w8a8", "int8", bars=((PERPLEXITY, "<=", 0.5), (TASKS, ">=", 99.9), *DRAWN_WELL)),
    "int4": Row("int4", "int8", bars=((PERPLEXITY, "<=", 8.0), (TASKS, ">=", 99.0))),
    "w4a8": Row("w8a8", "w4a8", bars=((PERPLEXITY, "<=", 2.0), (PSNR, ">=", 24.0))),
    "int8 in blocks": Row("int8", "int8", bars=((PERPLEXITY, "<=", 0.5), *DRAWN_WELL)),
    "web": Row("int8-web", "int8", "", bars=((PERPLEXITY, "<=", 2.0), *DRAWN_WELL)),
    "draw int8": Row("fp16", "int8", "smoothquant", bars=DRAWN_WELL),
}
METHODS = {  # one path each, the other in float
    "text int8 rtn": Row("int8", "fp16", "rtn"),
    "text w8a8 rtn": Row("w8a8", "fp16", "rtn"),
    "text int4 rtn": Row("int4", "fp16", "rtn"),
    "text int4 k-quant": Row("int4", "fp16", "kquant"),
    "text int4 awq": Row("int4", "fp16", "awq"),
    "text int4 gptq": Row("int4", "fp16", "gptq"),
    "text int4 awq+gptq": Row("int4", "fp16", "awq+gptq"),
    "draw int8 rtn": Row("fp16", "int8", "rtn"),
    "draw w4a8 rtn": Row("fp16", "w4a8", "rtn"),
    "draw w4a8 k-quant": Row("fp16", "w4a8", "kquant"),
}
HEAD = (
    f"{'':20} {'MB':>6} {'perplexity':>10} {'':>8} {'alike':>6} {'PSNR':>6} {'SSIM':>7} {'read':>6} {'drawn':>6}  bars"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *METHODS], default=list(ROWS))
    parser.add_argument(
        "--data", type=Path, help="a dataset made by `edgemm data`: its questions and captions are tasks"
    )
    parser.add_argument("--limit", type=int, default=50, help="questions a kind and drawings a split")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="tasks: reading, drawing")
    parser.add_argument("--groups", nargs="*", default=GROUPS, help="of what is drawn (none: all)")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    document = _document(args)
    for path in args.checkpoints:
        print(f"{path.name}\n{HEAD}")
        Table(path, document, args).fill(args.rows)
    print(json.dumps(document))


def _document(args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "steps": args.steps,
        "data": args.data.name if args.data else None,
        "limit": args.limit,
        **({} if tuple(args.suites) == SUITES else {"suites": args.suites}),
        "groups": list(args.groups),
        "drawings": list(PROMPTS),
    }
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
        self.plain: tuple[Unified, Answers, Records] | None = None

    def fill(self, names: list[str]) -> None:
        for name in names:
            if name not in self.rows:
                self.rows[name] = self._measure({**ROWS, **METHODS}[name])
                if self.args.output:
                    self.args.output.write_text(json.dumps(self.document, indent=1) + "\n")
            print(_line(name, self.rows[name]), flush=True)

    def _measure(self, row: Row) -> dict[str, Any]:
        if self.plain is None:
            model = checkpoint.load(self.path)
            self.plain = model, *self._ask(model)
        model, plain, before = self.plain
        if row.text == "fp32":
            answers, after, size = plain, before, 4 * sum(_numbers(model).values())
        else:
            model = copy.deepcopy(model)
            size = self._quantize(model, row)
            answers, after = self._ask(model)
        found = {**compare(plain, answers).to_json(), "tasks": _tasks(before, after)}
        about = {"text": row.text, "draw": row.draw, "method": row.method, "size_bytes": size}
        return {**about, **found, "bars": _bars(row, found)}

    def _quantize(self, model: Unified, row: Row) -> int:
        """In `model` itself; gives the bytes of all its weights."""
        if row.text == row.draw == "fp16":
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.half().float()
            return 2 * sum(_numbers(model).values())
        spec = quantize(model, QuantizeOptions(row.text, row.draw, row.method or None, steps=self.args.steps))
        named = {name for name, layer in spec.document.layers.items() if layer.bits}
        left = [(name, n) for name, n in _numbers(model).items() if not named & {name, name.rpartition(".")[0]}]
        swap(model, spec, folded=True)
        return size_bytes(spec) + sum(count * (2 if name.startswith(HALVED) else 4) for name, count in left)

    def _ask(self, model: Unified) -> tuple[Answers, Records]:
        args = self.args
        groups, suites = tuple(args.groups), tuple(args.suites)
        tasks = task_records(model, args.data, args.limit, args.steps, groups, suites) if args.data else {}
        return ask(model, args.steps), tasks


def _numbers(model: Unified) -> dict[str, int]:
    """How many a parameter or a table has; what is counted in whole numbers is not among them."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.numel() for name, tensor in tensors if tensor.is_floating_point()}


def _tasks(plain: Records, found: Records) -> dict[str, Any]:
    """All questions, all drawings, and each kind by itself: both means and the paired difference."""
    if not plain:
        return {}
    told = {"read": ("reading", "right", True), "drawn": ("drawing", "drawn_rank", 0)}
    right = {
        name: [[float(row[key] == wanted) for row in side[suite]] for side in (plain, found)]
        for name, (suite, key, wanted) in told.items()
        if suite in found
    }
    whole = {name: asdict(paired_difference(*pair)) for name, pair in right.items()}
    return {**whole, "kinds": {name: asdict(value) for name, value in compare_records(plain, found).items()}}


def _bars(row: Row, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar of the row with what was found; a score that was not asked for says nothing."""
    figures = {name: found[name] for name in (PERPLEXITY, PSNR, SSIM)}
    if found["tasks"].get("read", {}).get("first"):
        read = found["tasks"]["read"]
        figures[TASKS] = 100 * read["second"] / read["first"]
    return [
        {
            "figure": name,
            "limit": f"{way} {limit:g}",
            "found": figures[name],
            "met": figures[name] <= limit if way == "<=" else figures[name] >= limit,
        }
        for name, way, limit in row.bars
        if name in figures
    ]


def _line(name: str, row: dict[str, Any]) -> str:
    tasks = "".join(
        f" {100 * row['tasks'][part]['second']:5.1f}%" if part in row["tasks"] else f" {'':6}"
        for part in ("read", "drawn")
    )
    bars = ", ".join(f"{bar['figure']} {bar['limit']} {'met' if bar['met'] else 'MISSED'}" for bar in row["bars"])
    return (
        f"{name:20} {row['size_bytes'] / 1e6:6.1f} {row['perplexity']:10.3f} {row['perplexity_percent']:+7.2f}% "
        f"{100 * row['token_agreement']:5.1f}% {row['psnr_db']:6.1f} {row['ssim']:7.4f}{tasks}  {bars}"
    )


if __name__ == "__main__":
    main()
