"""`edgemm join --drawing A --reading B --output C`: two trainings of one base into one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import to_export
from edgemm.errors import MissingError
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = "join a checkpoint that learned to draw with one that learned to read"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drawing", required=True, metavar="CHECKPOINT", help="conditioner and denoiser come from here"
    )
    parser.add_argument("--reading", required=True, metavar="CHECKPOINT", help="projection and adapter come from here")
    parser.add_argument("--output", required=True, metavar="CHECKPOINT", help="folder to write")
    parser.add_argument("--name", default="", help="the new model's name (default: the folder's)")


def run(args: argparse.Namespace) -> int:
    try:
        from edgemm.train.merge import join
    except ImportError as error:
        raise MissingError(f"joining needs {error.name}: pip install 'edgemm[train]'") from error
    with Display():
        progress.status("joining")
        join(Path(args.drawing), Path(args.reading), Path(args.output), args.name)
    print(f"Wrote {args.output}; {to_export(args.output)}")
    return 0
