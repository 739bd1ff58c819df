"""`edgemm distill --teacher A --student nano|CONFIG.json|CHECKPOINT [--steps 4,2,1]`: a smaller or a faster student."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm import progress
from edgemm.cli.display import Display
from edgemm.errors import MissingError
from edgemm.train.distill_recipe import DistillRecipe
from edgemm.train.recipe import read_recipe

__all__ = ["HELP", "add_arguments", "run"]

HELP = "make a smaller student of a checkpoint, or one that draws in few steps; goes on where it was stopped"
FLAGS = {  # flag -> line of the recipe
    "teacher": "teacher",
    "student": "student",
    "steps": "few",
    "data": "data",
    "output": "output",
    "name": "name",
    "parts": "parts",
    "guidance": "guidance",
    "transformer_layers": "transformer_layers",
    "denoiser_layers": "denoiser_layers",
    "train_steps": "steps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="RECIPE.toml", help="a recipe, see recipes/; flags go on top")
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="it stays as it is")
    parser.add_argument(
        "--student", metavar="WHAT",
        help="nano (half of the teacher), a config.json of another depth, or with --steps a checkpoint to go on from",
    )  # fmt: skip
    parser.add_argument("--steps", metavar="N,N", help="teach drawing in so many steps without guidance: 4,2,1")
    parser.add_argument("--data", metavar="DIR", help="a dataset made by `edgemm data`")
    parser.add_argument("--output", metavar="RUN", help="run folder; the student is RUN/checkpoint")
    parser.add_argument("--name", help="the student's name (default: the run folder's)")
    parser.add_argument(
        "--parts", choices=("transformer", "denoiser", "both"), help="which half learns (default: both)"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="of the teacher, baked in (default: its own)")
    parser.add_argument("--transformer-layers", type=int, metavar="N", help="default: what the student says")
    parser.add_argument("--denoiser-layers", type=int, metavar="N", help="default: what the student says")
    parser.add_argument("--train-steps", type=int, metavar="N", help="steps of training (default: 1000)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set any line of the recipe")


def run(args: argparse.Namespace) -> int:
    given = {key: getattr(args, flag) for flag, key in FLAGS.items() if getattr(args, flag) is not None}
    changes = [f"{key}={value}" for key, value in given.items()]
    recipe = read_recipe(args.config, ["task=draw", *changes, *args.set], DistillRecipe)
    with Display():
        progress.status("loading torch")
        try:
            from edgemm.train.distill import distill
        except ImportError as error:
            raise MissingError(f"distilling needs {error.name}: pip install 'edgemm[train]'") from error
        distill(recipe)
    result = Path(recipe.output) / "checkpoint"
    print(f"Wrote {result}; export it: edgemm export {result} --output {result.parent.name}.bundle")
    return 0
