"""`edgemm finetune CHECKPOINT --data DIR --output RUN`: an adapter in PEFT's layout, resumable.

DIR is a dataset, or a folder of pictures with words, which becomes one on the way.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from edgemm import progress
from edgemm.cli.hints import command
from edgemm.errors import MissingError
from edgemm.progress import Display
from edgemm.train.recipe_file import METHODS, PARTS, FinetuneRecipe, read_recipe

__all__ = ["HELP", "add_arguments", "run"]

HELP = "teach a checkpoint a style or a topic with a small adapter; goes on where it was stopped"
FLAGS = {  # flag -> line of the recipe
    "data": "data",
    "output": "output",
    "method": "method",
    "parts": "parts",
    "target_modules": "target_modules",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "name": "name",
    "steps": "steps",
    "pictures": "pictures",
    "learning_rate": "learning_rate",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to start from; it stays as it is")
    parser.add_argument(
        "--config", metavar="RECIPE.toml", help="a recipe, see recipes/style-lora.toml; flags go on top"
    )
    parser.add_argument(
        "--data", metavar="DIR",
        help="a dataset made by `edgemm data`, or a folder of pictures: edgemm data pictures --help",
    )  # fmt: skip
    parser.add_argument("--skip-broken", action="store_true", help="of such a folder: leave out what cannot be read")
    parser.add_argument("--output", metavar="RUN", help="run folder; the adapter is RUN/adapters/NAME")
    parser.add_argument("--name", help="the adapter's name (default: adapter)")
    parser.add_argument("--method", choices=METHODS, help="default: lora")
    parser.add_argument("--parts", choices=PARTS, help="how it draws, how it reads, or both (default: denoiser)")
    parser.add_argument("--target-modules", nargs="+", metavar="LAYER", help="linear layers by name: q_proj, qkv_proj")
    parser.add_argument("--rank", type=int, metavar="R", help="default: 16")
    parser.add_argument("--alpha", type=int, metavar="A", help="default: twice the rank")
    parser.add_argument("--steps", type=int, metavar="N", help="default: 300")
    parser.add_argument("--pictures", type=int, metavar="N", help="train on so many of the data's pictures")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="default: 1e-3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set any line of the recipe")


def run(args: argparse.Namespace) -> int:
    if args.rank is not None and args.alpha is None:
        args.alpha = 2 * args.rank
    changes = [f"start={args.checkpoint}"]
    for flag, key in FLAGS.items():
        value = getattr(args, flag)
        if value is not None:
            changes.append(f"{key}={','.join(value) if isinstance(value, list) else value}")
    recipe = read_recipe(args.config, [*changes, *args.set], FinetuneRecipe, "finetune")
    with Display():
        recipe = dataclasses.replace(recipe, data=_dataset(recipe, args.skip_broken))
        progress.status("loading torch")
        try:
            from edgemm.train.run import finetune
        except ImportError as error:
            raise MissingError(f"finetuning needs {error.name}: pip install 'edgemm[train]'") from error
        folder = finetune(recipe)
    merged = Path(recipe.output) / "merged"
    print(f"Wrote {folder}; merge it: {command('merge', args.checkpoint, folder, '--output', merged)}")
    return 0


def _dataset(recipe: FinetuneRecipe, skip_broken: bool) -> str:
    """The recipe's dataset; a folder of pictures is made one first, in the size that the model reads and draws."""
    from edgemm.model.config import ModelConfig

    config = ModelConfig.read(Path(recipe.start) / "config.json")  # before the pictures are read
    data = Path(recipe.data)
    if (data / "dataset.json").exists():
        return recipe.data
    from edgemm.data.collect import imported
    from edgemm.data.sources import default_cache

    sizes = [config.image_tokens.image_size] * recipe.draws + [config.vision.image_size] * recipe.reads
    return str(imported(data, max(sizes), default_cache(), skip_broken))
