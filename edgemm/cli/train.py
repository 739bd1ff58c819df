"""`edgemm train --config RECIPE`: training in one stage or several, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import to_export
from edgemm.errors import MissingError
from edgemm.progress import Display
from edgemm.train.recipe import DESIGNS
from edgemm.train.recipe_file import read_stages

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train a checkpoint from a recipe; goes on where it was stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE.toml", help="the recipe, see recipes/")
    parser.add_argument("--data", metavar="DIR", help="a dataset made by `edgemm data` (default: the recipe's)")
    parser.add_argument(
        "--output", metavar="RUN", help="run folder; the result is RUN/checkpoint, of stages RUN/NAME/..."
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of training, of every stage")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a line of the recipe; NAME.KEY=VALUE: of one of its stages",
    )
    for name, choices in DESIGNS.items():
        flag = name.replace("_", "-")
        parser.add_argument(f"--{flag}", choices=choices, help=f"design of a new model, as --set {name}=...")


def run(args: argparse.Namespace) -> int:
    flags = {name: getattr(args, name) for name in ("data", "output", "steps", *DESIGNS)}
    chosen = [f"{name}={value}" for name, value in flags.items() if value is not None]
    stages = read_stages(args.config, [*chosen, *args.set])
    with Display():
        progress.status("loading torch")
        try:
            from edgemm.train.run import train_stages
        except ImportError as error:
            raise MissingError(f"training needs {error.name}: pip install 'edgemm[train]'") from error
        is_first = train_stages(stages)
    if is_first:  # of many processes the first one speaks
        result = Path(stages[-1].output) / "checkpoint"
        print(f"Wrote {result}; {to_export(result)}")
    return 0
