"""From a recipe to a trained checkpoint: build or load the model, choose the task, run the loop."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edgemm.config import PRESETS
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.draw import DrawTask
from edgemm.train.loop import Task, run_loop
from edgemm.train.recipe import Recipe

__all__ = ["train"]


def train(recipe: Recipe) -> None:
    """Train recipe.task to the end; the result is recipe.output/checkpoint."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    model = _start(recipe)
    model.requires_grad_(False)
    task = _task(model, recipe)
    print(f"{recipe.task}: {task.description}; {Path(recipe.output)}", file=sys.stderr)
    run_loop(model, task, recipe)


def _start(recipe: Recipe) -> Unified:
    """The preset or the checkpoint; whatever a task adds to it is initialised from the seed too."""
    torch.manual_seed(recipe.seed)
    if recipe.start in PRESETS:
        return checkpoint.build(recipe.start, recipe.seed)
    return checkpoint.load(recipe.start, merge=recipe.task != "read")  # reading goes on with an adapter as it is


def _task(model: Unified, recipe: Recipe) -> Task:
    if recipe.task == "read":
        from edgemm.train.read import ReadTask

        return ReadTask(model, recipe)
    return DrawTask(model, recipe)
