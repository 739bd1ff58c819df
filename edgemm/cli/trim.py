"""`edgemm trim CHECKPOINT --vocabulary N --output C`: the same model with fewer tokens to know."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import to_export
from edgemm.errors import MissingError
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = "cut a checkpoint's vocabulary to what its texts need and the commonest tokens besides"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="or a text model's Hugging Face folder; it stays as it is"
    )
    parser.add_argument("--vocabulary", required=True, type=int, metavar="N", help="tokens that are left")
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="FILE|DIR", type=Path,
        help="texts, or datasets made by `edgemm data`, whose words stay as they are (default: shipped words alone)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="CHECKPOINT", type=Path, help="folder to write")
    parser.add_argument("--name", default="", help="the new model's name (default: the folder's)")


def run(args: argparse.Namespace) -> int:
    try:
        from edgemm.train.trim import trim
    except ImportError as error:
        raise MissingError(f"trimming needs {error.name}: pip install 'edgemm[train]'") from error
    with Display():
        progress.status("trimming")
        trim(args.checkpoint, args.output, args.vocabulary, args.text, args.name)
    print(f"Wrote {args.output}; {to_export(args.output)}")
    return 0
