"""`edgemm merge CHECKPOINT ADAPTER --output C`: an adapter into a checkpoint of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import to_export
from edgemm.errors import MissingError
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = "merge an adapter into a copy of its checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="what the adapter was trained on")
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="folder with transformer/, denoiser/ or both")
    parser.add_argument("--output", required=True, metavar="CHECKPOINT", type=Path, help="folder to write")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S",
        help="how much of it: half of a style keeps more of the checkpoint's own drawing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="the new model's name (default: the folder's)")
    parser.add_argument(
        "--onto", choices=("float", "nf4"), default="float",
        help="nf4: the transformer as qlora rounded it while training, stored whole (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    try:
        from edgemm.train.merge import merge
    except ImportError as error:
        raise MissingError(f"merging needs {error.name}: pip install 'edgemm[train]'") from error
    with Display():
        progress.status("merging")
        merge(args.checkpoint, args.adapter, args.output, args.onto, args.name, args.strength)
    print(f"Wrote {args.output}; {to_export(args.output)}")
    return 0
