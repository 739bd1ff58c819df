"""Finetuning: an adapter on a finished model, by the losses it was trained with.

The denoiser's adapter learns from pictures (draw.py), the transformer's from questions about them (read.py), each
alone or both in one run.  The transformer's lies above the layers that the denoiser reads, so either leaves the other
half of the model as it was, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.errors import CheckpointError
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.adapters import add_adapter, save_adapter
from edgemm.train.finetune_recipe import FinetuneRecipe
from edgemm.train.loop import run_loop
from edgemm.train.ranks import Ranks, Share
from edgemm.train.tasks.draw import DrawTask
from edgemm.train.tasks.joint import TwoTasks
from edgemm.train.tasks.read import ReadTask

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["AdapterTask", "finetune"]


def finetune(recipe: FinetuneRecipe) -> Path:
    """Train the adapter to the end; returns its folder."""
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
