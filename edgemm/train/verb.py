"""`edgemm train --config RECIPE`: one stage of training, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm.errors import MissingError
from edgemm.train.recipe import read_recipe

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train a checkpoint from a recipe; goes on where it was stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE.toml", help="the recipe, see recipes/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a line of the recipe")


def run(args: argparse.Namespace) -> int:
    recipe = read_recipe(args.config, args.set)
    try:
        from edgemm.train.run import train
    except ImportError as error:
        raise MissingError(f"training needs {error.name}: pip install 'edgemm[train]'") from error
    if train(recipe):  # of many processes the first one speaks
        print(
            f"Wrote {Path(recipe.output) / 'checkpoint'}; export it: edgemm export {Path(recipe.output) / 'checkpoint'}"
        )
    return 0
