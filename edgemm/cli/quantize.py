"""`edgemm quantize CHECKPOINT --text int4 --output SPEC`: a spec that `edgemm export --quant SPEC` lowers."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.display import Display
from edgemm.errors import MissingError, UsageError
from edgemm.quantize.spec import Spec, check_destination

__all__ = ["HELP", "add_arguments", "run"]

SIDES = ("text", "draw")
ALONE = (
    "text",
    "draw",
    "method",
    "calibration",
    "samples",
    "steps",
    "auto",
    "cache",
    "portable",
    "budget_text",
    "budget_draw",
)
ALONE += ("report", "tasks")  # what --bitsandbytes has no use for
HELP = "decide how a checkpoint is quantized, reading and drawing apart, and judge it before any export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument(
        "--output", required=True, metavar="SPEC", help="folder to write: quant.json, quant.safetensors"
    )
    parser.add_argument("--text", help="the transformer: int4 (default), int8, w8a8, fp16, fp8, nvfp4 or nvfp4-weights")
    parser.add_argument("--draw", help="conditioner and denoiser: int8 (default), w4a8, fp16 or fp8")
    parser.add_argument(
        "--method",
        metavar="METHOD",
        help="rtn, kquant, awq, gptq, smoothquant, svd; joined by +, one a side with text=...,draw=... "
        "(default: what suits the precision)",
    )
    parser.add_argument("--calibration", metavar="DATA", help="a text file or a dataset folder (default: shipped text)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="pieces of text and prompts (default: 128, if there are)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps to calibrate and judge at (default: the model's)")
    parser.add_argument("--rank", type=int, default=16, help="of svd's branch (default: 16)")
    parser.add_argument(
        "--auto",
        nargs="?",
        const="smallest",
        choices=("smallest", "fastest"),
        help="find each layer's precision: the smallest (default) or fastest model within both budgets",
    )
    parser.add_argument(
        "--bitsandbytes",
        choices=("nf4", "int8"),
        help="write no spec but the transformer alone, as a folder that transformers and bitsandbytes load",
    )
    parser.add_argument("--cache", choices=("float", "int8"), help="keys and values on CPUs (default: float)")
    parser.add_argument("--portable", action="store_true", help="forms that NVIDIA and OpenVINO take too")
    parser.add_argument("--budget-text", metavar="BUDGET", help="ppl+3%%: perplexity at most 3 %% higher, or exit 7")
    parser.add_argument(
        "--budget-draw", metavar="BUDGET", help="psnr30 or ssim0.97: drawings at least so alike, or exit 7"
    )
    parser.add_argument("--report", metavar="PAGE.html", help="judge the spec and write a page, and JSON beside it")
    parser.add_argument(
        "--tasks",
        metavar="DIR",
        help="a dataset: both models do its tasks, and the report compares them pair by pair; with --auto its judge "
        "scores every variant's drawings",
    )
    parser.add_argument("--tasks-limit", type=int, default=100, metavar="N", help="questions a kind (default: 100)")
    parser.add_argument("--overwrite", action="store_true", help="replace a spec that stands there")


def run(args: argparse.Namespace) -> int:
    methods = read_methods(args.method)
    _check(args)
    if args.bitsandbytes:
        return _write_bitsandbytes(args)
    with Display(results=True):
        progress.status("loading torch")
        try:
            from edgemm.model import checkpoint
            from edgemm.search.jobs import Job, auto, judged
        except ImportError as error:
            raise MissingError(f"quantize needs {error.name or error}: pip install 'edgemm[export,ort]'") from error
        source, output = Path(args.checkpoint).resolve(), Path(args.output)
        check_destination(output, args.overwrite)
        model = checkpoint.load(source)
        if model.config.family in ("vq", "connector"):
            raise UsageError(
                f"{source.name} is of family {model.config.family}, which only `edgemm export --precision int8` or "
                "int4 quantizes so far"
            )
        job = Job(
            source=(source.name, checkpoint.weights_hash(source)),
            methods=methods,
            calibration=Path(args.calibration) if args.calibration else None,
            samples=args.samples,
            steps=args.steps or model.config.sampler.num_inference_steps,
            rank=args.rank,
            budgets={"text": args.budget_text, "draw": args.budget_draw},
            report=Path(args.report) if args.report else None,
            tasks=Path(args.tasks) if args.tasks else None,
            tasks_limit=args.tasks_limit,
            cache=args.cache or "float",
        )

        def keep(spec: Spec) -> None:
            spec.save(output, args.overwrite)

        if args.auto:
            spec = auto(model, job, args.auto, output, keep)
        else:
            spec = judged(model, job, args.text or "int4", args.draw or "int8", args.portable, keep)
    counts = {bits: sum(layer.bits == bits for layer in spec.document.layers.values()) for bits in (4, 8, None)}
    print(
        f"Wrote {args.output} ({counts[4]} layers in 4 bits, {counts[8]} in 8, {counts[None]} in float); "
        f"next: edgemm export {args.checkpoint} --quant {args.output} --output BUNDLE"
    )
    return 0


def _write_bitsandbytes(args: argparse.Namespace) -> int:
    with Display():
        progress.status("loading torch")
        try:
            from edgemm.model import checkpoint
            from edgemm.quantize.bitsandbytes_folder import write_bitsandbytes
        except ImportError as error:
            raise MissingError(f"quantize needs {error.name or error}: pip install 'edgemm[export]'") from error
        model = checkpoint.load(Path(args.checkpoint).resolve())
        progress.status(f"packing the transformer in {args.bitsandbytes}")
        write_bitsandbytes(model, Path(args.output), args.bitsandbytes, args.overwrite)
    print(
        f"Wrote {args.output} (the transformer in {args.bitsandbytes}: it reads text); "
        f"next: transformers.AutoModelForCausalLM.from_pretrained({args.output!r})"
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """What makes no sense is told before torch is loaded."""
    if args.bitsandbytes:
        given = [name for name in ALONE if getattr(args, name)]
        if given:
            raise UsageError(f"--bitsandbytes rounds by itself: leave out --{given[0].replace('_', '-')}")
    for name in ("steps", "rank", "tasks_limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")
    if args.report and not args.report.endswith(".html"):
        raise UsageError(f"--report {args.report} does not end in .html")
    if args.tasks and not (args.report or args.auto):
        raise UsageError("--tasks is for the report: give --report PAGE.html too")
    if args.auto and (args.portable or args.text or args.draw):
        raise UsageError("--auto decides every layer's precision itself: leave out --text, --draw and --portable")
    if args.cache == "int8" and (args.auto or args.portable):
        raise UsageError("--cache int8 is for CPUs, and --auto does not search it: leave out --auto and --portable")


def read_methods(words: str | None) -> dict[str, str]:
    """`gptq` for both sides, or `text=awq+gptq,draw=svd`; a side that is not named has its precision's own."""
    if words is None:
        return {}
    if "=" not in words:
        return dict.fromkeys(SIDES, words)
    found = {}
    for pair in words.split(","):
        side, _, method = pair.partition("=")
        if side not in SIDES:
            raise UsageError(f"--method names {side!r}, expected text=... or draw=...")
        found[side] = method
    return found
