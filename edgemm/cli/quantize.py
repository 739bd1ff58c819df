"""`edgemm quantize CHECKPOINT --text int4 --output SPEC`: a spec that `edgemm export --quant SPEC` lowers."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.bundle.writer import telling_name
from edgemm.cli.flags import add_options, read_options
from edgemm.cli.hints import command
from edgemm.errors import MissingError, UsageError
from edgemm.options import options_of
from edgemm.progress import Display
from edgemm.quantize.options import JudgeOptions, QuantizeOptions
from edgemm.quantize.spec import Spec, check_destination

__all__ = ["HELP", "add_arguments", "run"]

HELP = "decide how a checkpoint is quantized, reading and drawing apart, and judge it before any export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument(
        "--output", required=True, metavar="SPEC", help="folder to write: quant.json, quant.safetensors"
    )
    add_options(parser, QuantizeOptions)
    add_options(parser, JudgeOptions)
    parser.add_argument(
        "--bitsandbytes",
        choices=("nf4", "int8"),
        help="write no spec but the transformer alone, as a folder that transformers and bitsandbytes load",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what stands there, a spec or a model")


def run(args: argparse.Namespace) -> int:
    options, judging = read_options(args, QuantizeOptions), read_options(args, JudgeOptions)
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
                f"{telling_name(source)} is of family {model.config.family}, which only `edgemm export --precision "
                "int8` or int4 quantizes so far"
            )
        steps = options.steps or model.config.sampler.num_inference_steps
        job = Job((telling_name(source), checkpoint.weights_hash(source)), options, judging, steps)

        def keep(spec: Spec) -> None:
            spec.save(output, args.overwrite)

        spec = auto(model, job, judging.auto, output, keep) if judging.auto else judged(model, job, keep)
    counts = {bits: sum(layer.bits == bits for layer in spec.document.layers.values()) for bits in (4, 8, None)}
    print(
        f"Wrote {args.output} ({counts[4]} layers in 4 bits, {counts[8]} in 8, {counts[None]} in float); "
        f"next: {command('export', args.checkpoint, '--quant', args.output, '--output', 'BUNDLE')}"
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
        if args.overwrite:
            checkpoint.check_model_output(Path(args.output), args.checkpoint)
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
        given = [name for name in (*options_of(QuantizeOptions), *options_of(JudgeOptions)) if getattr(args, name)]
        if given:
            raise UsageError(f"--bitsandbytes rounds by itself: leave out --{given[0].replace('_', '-')}")
    if args.auto and (args.portable or args.text or args.draw):
        raise UsageError("--auto decides every layer's precision itself: leave out --text, --draw and --portable")
    if args.cache == "int8" and (args.auto or args.portable):
        raise UsageError("--cache int8 is for CPUs, and --auto does not search it: leave out --auto and --portable")
