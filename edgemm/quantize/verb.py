"""`edgemm quantize CHECKPOINT --text int4 --output SPEC`: a spec that `edgemm export --quant SPEC` lowers."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm.errors import MissingError, UsageError
from edgemm.export.status_line import StatusLine
from edgemm.quantize.destination import check_destination

__all__ = ["HELP", "add_arguments", "run"]

HELP = "decide how a checkpoint is quantized, reading and drawing apart, and judge it before any export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument(
        "--output", required=True, metavar="SPEC", help="folder to write: quant.json, quant.safetensors"
    )
    parser.add_argument("--text", default="int4", help="the transformer: int4 (default), int8, w8a8 or fp16")
    parser.add_argument("--draw", default="int8", help="conditioner and denoiser: int8 (default), w4a8 or fp16")
    parser.add_argument(
        "--method",
        metavar="METHOD",
        help="rtn, kquant, awq, gptq, smoothquant, svd; joined by +, one a side with text=...,draw=... "
        "(default: text=awq+gptq,draw=smoothquant)",
    )
    parser.add_argument("--calibration", metavar="DATA", help="a text file or a dataset folder (default: shipped text)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="pieces of text and prompts (default: 128, if there are)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps to calibrate and judge at (default: the model's)")
    parser.add_argument("--rank", type=int, default=16, help="of svd's branch (default: 16)")
    parser.add_argument("--portable", action="store_true", help="forms that NVIDIA and OpenVINO take too")
    parser.add_argument("--budget-text", metavar="BUDGET", help="ppl+3%%: perplexity at most 3 %% higher, or exit 7")
    parser.add_argument(
        "--budget-draw", metavar="BUDGET", help="psnr30 or ssim0.97: drawings at least so alike, or exit 7"
    )
    parser.add_argument("--report", metavar="PAGE.html", help="judge the spec and write a page, and JSON beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace a spec that stands there")


def run(args: argparse.Namespace) -> int:
    methods = read_methods(args.method)
    for name in ("steps", "rank"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UsageError(f"--{name} is {value}, expected 1 or more")
    if args.report and not args.report.endswith(".html"):
        raise UsageError(f"--report {args.report} does not end in .html")
    with StatusLine() as status:
        status.say("loading torch")
        try:
            from edgemm.model import checkpoint
            from edgemm.quantize.budgets import read_budget, require_budgets
            from edgemm.quantize.judges import ask, compare, layer_signals
            from edgemm.quantize.quantization import quantize
            from edgemm.quantize.quantized_linear import swap
            from edgemm.quantize.report import document_of, write_report
        except ImportError as error:
            raise MissingError(f"quantize needs {error.name or error}: pip install 'edgemm[export,ort]'") from error
        words = {"text": args.budget_text, "draw": args.budget_draw}
        budgets = tuple(read_budget(side, word) for side, word in words.items() if word)
        source, output = Path(args.checkpoint).resolve(), Path(args.output)
        check_destination(output, args.overwrite)
        model = checkpoint.load(source)
        if model.config.objective == "ar":
            raise UsageError(
                f"{source.name} draws code by code: it is quantized by `edgemm export --precision int8` or int4 alone"
            )
        steps = args.steps or model.config.sampler.num_inference_steps
        judged = bool(budgets or args.report)
        if judged:
            status.say("asking the float model")
            plain = ask(model, steps)
        spec = quantize(
            model,
            args.text,
            args.draw,
            methods,
            Path(args.calibration) if args.calibration else None,
            args.samples,
            steps,
            args.portable,
            args.rank,
            (source.name, checkpoint.weights_hash(source)),
            status=status.say,
        )
        if judged:
            status.say("asking the quantized model")
            signals = layer_signals(model, spec)
            swap(model, spec, folded=True)
            quantized = ask(model, steps)
            scores = compare(plain, quantized)
            status.print(
                f"perplexity {scores.perplexity_float:.2f} -> {scores.perplexity:.2f} "
                f"({scores.perplexity_percent:+.2f} %), tokens alike {100 * scores.token_agreement:.1f} %, "
                f"PSNR {scores.psnr_db:.1f} dB, SSIM {scores.ssim:.4f}"
            )
            if args.report:
                write_report(Path(args.report), document_of(spec, scores, signals, steps), plain, quantized)
            require_budgets(scores, budgets)
        spec.save(output, args.overwrite)
    counts = {bits: sum(layer.bits == bits for layer in spec.document.layers.values()) for bits in (4, 8, None)}
    print(
        f"Wrote {args.output} ({counts[4]} layers in 4 bits, {counts[8]} in 8, {counts[None]} in float); "
        f"next: edgemm export {args.checkpoint} --quant {args.output} --output BUNDLE"
    )
    return 0


def read_methods(words: str | None) -> dict[str, str]:
    """`gptq` for both sides, `text=awq+gptq,draw=svd`, or None for each side's own."""
    own = {"text": "awq+gptq", "draw": "smoothquant"}
    if words is None:
        return own
    if "=" not in words:
        return dict.fromkeys(own, words)
    for pair in words.split(","):
        side, _, method = pair.partition("=")
        if side not in own:
            raise UsageError(f"--method names {side!r}, expected text=... or draw=...")
        own[side] = method
    return own
