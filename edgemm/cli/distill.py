"""`edgemm distill --teacher A --student nano|CONFIG.json|CHECKPOINT [--few 4,2,1]`: a smaller or a faster student."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import to_export
from edgemm.errors import MissingError, UsageError
from edgemm.progress import Display
from edgemm.train.recipe_file import DistillRecipe, read_recipe

__all__ = ["HELP", "add_arguments", "run"]

HELP = "make a smaller student of a checkpoint, or one that draws in few steps; goes on where it was stopped"
FLAGS = (  # named like the recipe's lines
    *("teacher", "student", "few", "data", "output", "steps", "name", "parts", "guidance"),
    *("transformer_layers", "denoiser_layers"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="RECIPE.toml", help="a recipe, see recipes/; flags go on top")
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="it stays as it is")
    parser.add_argument(
        "--student", metavar="WHAT",
        help="nano (half of the teacher), a config.json of another depth, or with --few a checkpoint to go on from",
    )  # fmt: skip
    parser.add_argument("--few", metavar="N,N", help="teach drawing in so few steps without guidance: 4,2,1")
    parser.add_argument("--data", metavar="DIR", help="a dataset made by `edgemm data`")
    parser.add_argument("--output", metavar="RUN", help="run folder; the student is RUN/checkpoint")
    parser.add_argument("--steps", metavar="N", help="steps of training (default: 1000)")
    parser.add_argument("--name", help="the student's name (default: the run folder's)")
    parser.add_argument(
        "--parts", choices=("transformer", "denoiser", "both"), help="which half learns (default: both)"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="of the teacher, baked in (default: its own)")
    parser.add_argument("--transformer-layers", type=int, metavar="N", help="default: what the student says")
    parser.add_argument("--denoiser-layers", type=int, metavar="N", help="default: what the student says")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set any line of the recipe")


def run(args: argparse.Namespace) -> int:
    if args.steps and "," in args.steps:
        raise UsageError(f"--steps is the steps of training; to draw in so few: --few {args.steps}")
    if not (args.config or args.student or args.few):
        raise UsageError("nothing to distil: give --student nano, --few 4,2,1, or one after the other")
    changes = [f"{name}={getattr(args, name)}" for name in FLAGS if getattr(args, name) is not None]
    kind = "few-steps" if args.few else "student"
    recipe = read_recipe(args.config, [*changes, *args.set], DistillRecipe, kind)
    with Display():
        progress.status("loading torch")
        try:
            from edgemm.train.distill import distill
        except ImportError as error:
            raise MissingError(f"distilling needs {error.name}: pip install 'edgemm[train]'") from error
        distill(recipe)
    result = Path(recipe.output) / "checkpoint"
    print(f"Wrote {result}; {to_export(result)}")
    return 0
