"""From a recipe to a trained checkpoint: build or load the model, choose the task, run the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from edgemm import progress
from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.model.unified import Unified
from edgemm.train.loop import Task, run_loop
from edgemm.train.optimizers import own_the_transformer, parts_of
from edgemm.train.ranks import Ranks
from edgemm.train.recipe import (
    AutoencodeRecipe,
    DrawRecipe,
    EditRecipe,
    JointRecipe,
    ReadRecipe,
    Stage,
)
from edgemm.train.tasks.draw import DrawTask

__all__ = ["train", "train_stages"]


def train_stages(stages: Sequence[Stage]) -> bool:
    """Train one stage after the other; a finished one is not touched again. True in the process that wrote them."""
    speaks = True
    for number, recipe in enumerate(stages, start=1):
        following = stages[number:]
        if following and Path(following[0].output, "state.pt").exists() and following[0].start == _result(recipe):
            continue  # the next stage has begun from its result
        speaks = train(recipe)
    return speaks


def _result(recipe: Stage) -> str:
    return str(Path(recipe.output) / "checkpoint")


def train(recipe: Stage) -> bool:
    """Train one stage to its end; the result is recipe.output/checkpoint. True in the process that wrote it."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    ranks = Ranks()
    ranks.share.of(recipe.batch)  # refuses a batch that cannot be shared, before anything is computed
    progress.status("preparing")
    model = _start(recipe)
    model.requires_grad_(False)
    model.to(ranks.device)
    task = _task(model, recipe, ranks)
    if ranks.is_first:
        where = f"{ranks.share.count} x {ranks.device.type}{', sharded' if ranks.sharded else ''}"
        progress.line(f"{recipe.kind}: {task.description}; {where}; {Path(recipe.output)}")
    run_loop(model, task, recipe, ranks)
    return ranks.is_first


def _start(recipe: Stage) -> Unified:
    """The preset or the checkpoint; whatever a task adds to it is initialised from the seed too."""
    torch.manual_seed(recipe.seed)
    if recipe.start in PRESETS:
        config = variant(PRESETS[recipe.start](), recipe.experts, recipe.vision, recipe.image_tokens, recipe.objective)
        model = checkpoint.build(config, recipe.seed)
    else:  # reading goes on with an adapter as it is, unless all weights learn
        adapts = isinstance(recipe, ReadRecipe | JointRecipe) and "transformer" not in recipe.train
        model = checkpoint.load(recipe.start, merge=not adapts)
    if "transformer" in parts_of(recipe, model.config):
        own_the_transformer(model)
    return model


def _task(model: Unified, recipe: Stage, ranks: Ranks) -> Task:
    if model.config.objective == "ar":
        return _task_of_codes(model, recipe, ranks)
    if isinstance(recipe, AutoencodeRecipe):
        from edgemm.train.tasks.tokenizer import AutoencodeTask

        return AutoencodeTask(model, recipe, ranks.share)
    if isinstance(recipe, EditRecipe):
        from edgemm.train.tasks.draw import EditTask

        return EditTask(model, recipe, ranks.share)
    if isinstance(recipe, DrawRecipe):
        return DrawTask(model, recipe, ranks.share)
    with ranks.accelerator.main_process_first():  # it keeps what the eye sees in a file that the others then read
        if isinstance(recipe, JointRecipe):
            from edgemm.train.tasks.joint import JointTask

            return JointTask(model, recipe, ranks.share)
        from edgemm.train.tasks.read import ReadTask

        assert isinstance(recipe, ReadRecipe)
        return ReadTask(model, recipe, share=ranks.share)


def _task_of_codes(model: Unified, recipe: Stage, ranks: Ranks) -> Task:
    """Of a model whose pictures are codes."""
    if isinstance(recipe, AutoencodeRecipe):
        from edgemm.train.tasks.tokenizer import VqTask

        return VqTask(model, recipe, ranks.share)
    if not isinstance(recipe, DrawRecipe | ReadRecipe | JointRecipe):
        raise UsageError(f"recipe: kind is {recipe.kind}, a model of codes learns to draw, read or joint")
    from edgemm.train.tasks.codes import CodesTask

    return CodesTask(model, recipe, ranks.share)
