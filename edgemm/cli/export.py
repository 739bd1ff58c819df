"""`edgemm export CHECKPOINT --output BUNDLE`: checkpoint to bundle, or an exit code that says why not."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from edgemm.cli.status_line import StatusLine
from edgemm.errors import MissingError, UsageError
from edgemm.families.folder import find_foreign, other_folders

__all__ = ["HELP", "add_arguments", "run"]

HELP = "turn a checkpoint into a bundle; fails, and leaves nothing, when the bundle differs from the model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="checkpoint folder, of edgemm or of a Hugging Face model that a family knows"
    )
    parser.add_argument("--output", required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument(
        "--target",
        default="cpu",
        metavar="TARGET,...",
        help="where it runs, with commas: cpu (default), cuda, rtx, jetson-orin-jp6, jetson-orin, jetson-thor",
    )
    parser.add_argument(
        "--precision",
        metavar="PRECISION",
        help="fp32 (cpu's default), fp16 (the default of the others), int8 or int4; rtx and jetson-thor have fp8 and "
        "nvfp4, too; or one each: cpu=int8,rtx=fp16",
    )
    parser.add_argument(
        "--max-context",
        type=int,
        metavar="SLOTS",
        help="longest conversation, in tokens (default: 2048, or what the transformer was trained for)",
    )
    parser.add_argument(
        "--adapters",
        nargs="?",
        const="",
        metavar="LAYER,...",
        help="low-rank adapters may be swapped at run time, in these linear layers (default: all usual ones)",
    )
    parser.add_argument(
        "--adapter-rank", type=int, metavar="R", help="the largest rank that NVIDIA's engines take (default: 16)"
    )
    parser.add_argument(
        "--drafts", action="store_true", help="several guessed tokens may be checked in one run (guess_ahead)"
    )
    parser.add_argument(
        "--cache", choices=("float", "int8"), help="keys and values on cpu: float (default) or 8 bits, a quarter of it"
    )
    parser.add_argument("--quant", metavar="SPEC", help="how to quantize: a folder that `edgemm quantize` wrote")
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where a part lies that a model is published without, for example vae=sdxl-vae; may be given again",
    )
    parser.add_argument("--vae", metavar="FOLDER", help="the same as --component vae=FOLDER")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that stands there")


def run(args: argparse.Namespace) -> int:
    with StatusLine() as status, ended_like_ctrl_c():
        status.say("loading torch")
        try:
            from edgemm.verify.export_foreign import export_foreign
            from edgemm.verify.export_native import export_bundle
        except ImportError as error:
            raise MissingError(f"export needs {error.name or error}: pip install 'edgemm[export,ort]'") from error
        foreign = find_foreign(Path(args.checkpoint))
        others = other_folders([*args.component, *([f"vae={args.vae}"] if args.vae else [])])
        if others and not foreign:
            raise UsageError("--component and --vae are for models that others published; this checkpoint is whole")
        if foreign:
            foreign = dataclasses.replace(foreign, others=others)
        options: dict[str, Any] = {}
        if foreign and args.quant:
            raise UsageError("--quant is for edgemm's own checkpoints; this one takes --precision int8 or int4")
        if args.quant:
            options["quant"] = Path(args.quant)
        if args.adapters is not None:
            if foreign:
                raise UsageError("--adapters is for edgemm's own checkpoints; merge the adapter before you export")
            options["adapters"] = tuple(filter(None, args.adapters.split(",")))
        if args.adapter_rank is not None:
            if args.adapters is None:
                raise UsageError("--adapter-rank says how large adapters may be: give --adapters, too")
            options["adapter_rank"] = args.adapter_rank
        if args.cache:
            if foreign:
                raise UsageError("--cache is for edgemm's own checkpoints")
            options["cache"] = args.cache
        if args.drafts:
            if foreign:
                raise UsageError("--drafts is for edgemm's own checkpoints")
            options["drafts"] = True
        export = partial(export_foreign, foreign) if foreign else partial(export_bundle, Path(args.checkpoint))
        manifest = export(
            Path(args.output),
            args.target,
            args.precision,
            args.overwrite,
            args.max_context,
            report=status.print,
            status=status.say,
            **options,
        )
    size = sum(record.size_bytes for record in manifest.files.values()) / 1e6
    targets = ", ".join(manifest.targets)
    if "cpu" in manifest.targets and (manifest.loops.denoise or manifest.loops.image_tokens):
        hint = f"try it: edgemm draw {args.output} --prompt 'red heart' --output heart.png"
    elif "cpu" in manifest.targets:
        hint = f"try it: edgemm chat {args.output} --prompt 'Hello'"
    else:
        hint = f"build its engines on the device: edgemm build {args.output}"
    print(f"Wrote {args.output} ({size:.0f} MB for {targets}, every comparison passed); {hint}")
    return 0


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """A closed terminal, or a `timeout` that is over, takes the half-written bundle away too."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
