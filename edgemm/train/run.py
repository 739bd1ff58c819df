"""From a recipe to a trained checkpoint: build or load the model, choose the task, run the loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.data.format import check_dataset, read_dataset
from edgemm.errors import CheckpointError, UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.model.prompts import BYTES, learned_tokenizer_json
from edgemm.model.unified import Unified
from edgemm.train.adapters import add_adapter, check_adapter_output, save_adapter
from edgemm.train.loop import Task, changed_lines, logged, run_loop
from edgemm.train.optimizers import own_the_transformer, part_names
from edgemm.train.ranks import Ranks, Share
from edgemm.train.recipe import (
    DESIGNS,
    AutoencodeRecipe,
    DrawRecipe,
    EditRecipe,
    EyeRecipe,
    GraphRecipe,
    JointRecipe,
    Parts,
    ReadRecipe,
    Stage,
)
from edgemm.train.recipe_file import FinetuneRecipe
from edgemm.train.samples import texts_of
from edgemm.train.tasks.draw import DrawTask
from edgemm.train.tasks.joint import TwoTasks
from edgemm.train.tasks.read import ReadTask

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["AdapterTask", "finetune", "train", "train_stages"]


def train_stages(stages: Sequence[Stage]) -> bool:
    """Train one stage after the other; a finished one is not touched again. True in the process that wrote them."""
    for recipe in stages:
        _check_output(recipe)  # of the last one too, before the first has worked for hours
    speaks = True
    for number, recipe in enumerate(stages, start=1):
        following = stages[number:]
        if following and Path(following[0].output, "state.pt").exists() and following[0].start == _result(recipe):
            _tell_kept(recipe, following[0])
            continue  # the next stage has begun from its result
        speaks = train(recipe, following)
    return speaks


def _tell_kept(recipe: Stage, after: Stage) -> None:
    """A finished stage is not touched again: what was changed in its recipe since would be lost without a word."""
    changed = changed_lines(Path(recipe.output) / "state.pt", recipe)
    lines = logged(Path(recipe.output) / "log.jsonl")
    if lines and lines[-1][0] != recipe.steps:
        changed = ", ".join(filter(None, (changed, f"steps were {lines[-1][0]}, are {recipe.steps}")))
    if changed:
        progress.line(f"{recipe.output}: stays as it is, for {after.output} has begun from it: {changed}")


def _check_output(recipe: Stage) -> None:
    checkpoint.check_model_output(Path(_result(recipe)), recipe.start, recipe.data)
    logged(Path(recipe.output) / "log.jsonl")


def _result(recipe: Stage) -> str:
    return str(Path(recipe.output) / "checkpoint")


def train(recipe: Stage, following: Sequence[Stage] = ()) -> bool:
    """Train one stage to its end; the result is recipe.output/checkpoint. True in the process that wrote it.

    A tokenizer that it learns has the words of `following` stages, too.
    """
    began_s = time.process_time()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    _check_output(recipe)
    ranks = Ranks()
    ranks.share.of(recipe.batch)  # refuses a batch that cannot be shared, before anything is computed
    check_dataset(recipe.data)  # in a moment; a model may take a minute to be read
    progress.status("preparing")
    model = _start(recipe, following)
    model.requires_grad_(False)
    model.to(ranks.device)
    task = _task(model, recipe, ranks)
    if ranks.is_first:
        where = f"{ranks.share.count} x {ranks.device.type}{', sharded' if ranks.sharded else ''}"
        progress.line(f"{recipe.kind}: {task.description}; {where}; {Path(recipe.output)}")
        if isinstance(recipe, Parts) and recipe.idle:
            progress.line(f"recipe: train names {', '.join(recipe.idle)}, and kind {recipe.kind} teaches them nothing")
    run_loop(model, task, recipe, ranks, began_s)
    return ranks.is_first


def _start(recipe: Stage, following: Sequence[Stage]) -> Unified:
    """The preset or the checkpoint; whatever a task adds to it is initialised from the seed too."""
    torch.manual_seed(recipe.seed)
    if recipe.start in PRESETS:
        config = variant(
            PRESETS[recipe.start](),
            recipe.experts,
            recipe.vision,
            recipe.image_tokens,
            recipe.objective,
            recipe.mixture,
            recipe.graphs,
            recipe.motion,
        )
        model = checkpoint.build(config, recipe.seed, _tokenizer(recipe, following))
    else:  # reading goes on with an adapter as it is, unless all weights learn
        adapts = isinstance(recipe, ReadRecipe | JointRecipe) and "transformer" not in recipe.train
        model = checkpoint.load(recipe.start, merge=not adapts)
        _check_designs(recipe, model)
    if recipe.frames not in (0, model.config.image_tokens.frames):
        model = with_frames(model, recipe.frames)
    if "transformer" in part_names(recipe, model.config):
        own_the_transformer(model)
    return model


def _check_designs(recipe: Stage, model: Unified) -> None:
    """UsageError where the recipe asks for what only a new model is given, and this one has otherwise."""
    config, motion = model.config, model.config.motion
    has = {
        "experts": config.experts,
        "vision": config.vision.encoder if config.vision.encoder in ("dual", "conv") else "single",
        "image_tokens": config.image_tokens.kind,
        "objective": config.objective,
        "graphs": "rows" if config.graph else "text",
        "motion": str((motion.image_size // motion.stride) ** 2) if motion else "none",
    }
    for name, found in has.items():
        asked = getattr(recipe, name)
        if asked not in (found, DESIGNS[name][0]):
            raise UsageError(
                f"recipe: {name} is {asked}, and {recipe.start} has {found}: designs are chosen for a new model; start "
                "from a preset, or leave the line out"
            )


def _tokenizer(recipe: Stage, following: Sequence[Stage]) -> str:
    """Learned from what all stages' data say of the pictures that are trained on; "" where bytes are asked for."""
    if not recipe.vocabulary:
        return ""
    if recipe.vocabulary < BYTES:
        raise UsageError(f"recipe: vocabulary is {recipe.vocabulary}, expected {BYTES} or more, or 0 for single bytes")
    told = dict.fromkeys((stage.data, stage.splits) for stage in (recipe, *following))
    texts = [text for data, splits in told for text in texts_of(read_dataset(data), splits)]
    return learned_tokenizer_json(texts, recipe.vocabulary)


def with_frames(model: Unified, frames: int) -> Unified:
    """A model that draws clips with the weights of one that draws still pictures."""
    tokens = model.config.image_tokens
    if tokens.frames > 1:
        raise UsageError(f"recipe: frames is {frames}, {model.config.name} draws clips of {tokens.frames}")
    try:
        config = dataclasses.replace(model.config, image_tokens=dataclasses.replace(tokens, frames=frames))
    except ValueError as error:
        raise UsageError(f"recipe: frames is {frames}: {error}") from error
    clips = Unified(config, model.tokenizer_json)
    found = clips.load_state_dict(model.state_dict(), strict=False)
    assert set(found.missing_keys) == {"denoiser.frame_scale", "conditioner.frame_gate"} and not found.unexpected_keys
    return clips


def _task(model: Unified, recipe: Stage, ranks: Ranks) -> Task:
    if model.config.objective == "ar":
        return _task_of_codes(model, recipe, ranks)
    if isinstance(recipe, AutoencodeRecipe):
        from edgemm.train.tasks.tokenizer import AutoencodeTask

        return AutoencodeTask(model, recipe, ranks.share)
    if isinstance(recipe, EyeRecipe):
        from edgemm.train.tasks.eye import EyeTask

        return EyeTask(model, recipe, ranks.share)
    if isinstance(recipe, EditRecipe):
        from edgemm.train.tasks.draw import EditTask

        return EditTask(model, recipe, ranks.share)
    if isinstance(recipe, GraphRecipe):
        from edgemm.train.tasks.graphs import GraphTask

        return GraphTask(model, recipe, ranks.share)
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


# Finetuning: an adapter on a finished model, by the losses it was trained with.
#
# The denoiser's adapter learns from pictures (draw.py), the transformer's from questions about them (read.py), each
# alone or both in one run.  The transformer's lies above the layers that the denoiser reads, so either leaves the other
# half of the model as it was, bit for bit.


def finetune(recipe: FinetuneRecipe) -> Path:
    """Train the adapter to the end; returns its folder."""
    check_adapter_output(adapter_folder(Path(recipe.output), recipe))
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    ranks = Ranks()
    progress.status("preparing")
    model = checkpoint.load(recipe.start).requires_grad_(False).to(ranks.device)
    torch.manual_seed(recipe.seed)  # what the adapter starts from
    with ranks.accelerator.main_process_first():
        task = AdapterTask(model, recipe, ranks.share)
    if ranks.is_first:
        progress.line(f"finetune: {task.description}; {recipe.output}")
    run_loop(model, task, recipe, ranks)
    return adapter_folder(Path(recipe.output), recipe)


def adapter_folder(output: Path, recipe: FinetuneRecipe) -> Path:
    return output / "adapters" / recipe.name


class AdapterTask(TwoTasks):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: FinetuneRecipe, share: Share | None = None) -> None:
        if model.config.family != "mot":  # one set of weights, or none to draw with: no half could stay as it is
            raise CheckpointError(f"{recipe.start}: its family is {model.config.family}; adapters are built for mot")
        first = recipe.lora_first_layer or max(model.config.denoiser.prefix_layers) + 1
        recipe = dataclasses.replace(recipe, lora_first_layer=first)
        self.recipe = recipe
        self.peft: dict[str, PeftModel] = {}
        if recipe.draws:
            if not model.conditioner.whiten_matrix.any():
                raise CheckpointError(f"{recipe.start}: has not learned to draw yet; see: edgemm train")
            self.drawing = DrawTask(model, recipe, share)  # reads every prompt, before anything below is rounded
            self.drawing.trained.requires_grad_(False)
            self.peft["denoiser"] = add_adapter(model, "denoiser", recipe)
        if recipe.reads:
            if recipe.method == "qlora":
                from edgemm.train.adapters import to_nf4

                to_nf4(model.transformer.layers)
                model.transformer.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks the whole
            self.peft["transformer"] = add_adapter(model, "transformer", recipe)
            self.reading = ReadTask(model, recipe, self.peft["transformer"], share)
        count = sum(parameter.numel() for _, parameter in self.named_parameters())
        about = "; ".join(task.description for task in self.tasks)
        self.description = f"{recipe.method} on {' and '.join(self.peft)}, {count} parameters; {about}"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part, adapted in self.peft.items():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    yield f"{part}.{name}", parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return iter(())

    def prepare(self) -> None:
        """The checkpoint is finished; nothing comes before the first step."""

    def save(self, path: Path) -> None:
        """`path` is where a checkpoint would go; an adapter is none, and goes beside it."""
        save_adapter(self.peft, adapter_folder(path.parent, self.recipe))
