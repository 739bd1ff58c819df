"""Both losses at once: next-token cross-entropy on answers plus flow matching on pictures (as in arXiv:2408.11039).

    L = cross-entropy + flow_weight * flow

Both come from the same quadruplets of prompt, picture, question and answer, or drawing has pictures of its own.  With
an adapter the two halves touch nothing in common (read.py); with `train = [..., "transformer"]` one transformer learns
from both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import JointRecipe
from edgemm.train.tasks.draw import DrawTask
from edgemm.train.tasks.read import ReadTask

__all__ = ["JointTask", "TwoTasks"]


class JointTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: JointRecipe, share: Share | None = None) -> None:
        self.model, self.recipe = model, recipe
        drawn = dataclasses.replace(recipe, data=recipe.draw_data or recipe.data)
        self.drawing = DrawTask(model, drawn, share)  # reads every prompt before an adapter is put in
        self.reading = ReadTask(model, recipe, share=share)
        self.description = f"{self.drawing.description}; {self.reading.description}"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        seen: set[int] = set()
        for task in (self.drawing, self.reading):
            for name, parameter in task.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.drawing.named_buffers()
        yield from self.reading.named_buffers()

    def prepare(self) -> None:
        self.reading.prepare()

    def loss(self, step: int) -> Tensor:
        return self.reading.loss(step) + self.recipe.flow_weight * self.drawing.loss(step)

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """Each loss by itself too: their sum says little."""
        found = {"flow": self.drawing.flow_loss(step).item(), "cross_entropy": self.reading.loss(step).item()}
        return found | self.drawing.measures(step) | self.reading.measures(step)

    def samples(self, model: Unified) -> Tensor:
        return self.drawing.samples(model)

    def save(self, path: Path) -> None:
        self.reading.save(path)


# A drawing and a reading task in one run, or either alone: the losses add up.
#
# It knows the loop's interface (loop.py) and nothing of what the tasks do.


class TwoTasks:
    """What the loop trains."""

    drawing: DrawTask | None = None
    reading: ReadTask | None = None

    @property
    def tasks(self) -> list[DrawTask | ReadTask]:
        return [task for task in (self.drawing, self.reading) if task]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for task in self.tasks:
            yield from task.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        for task in self.tasks:
            yield from task.named_buffers()

    def prepare(self) -> None:
        for task in self.tasks:
            task.prepare()

    def loss(self, step: int) -> Tensor:
        return torch.stack([task.loss(step) for task in self.tasks]).sum()

    def measures(self, step: int) -> dict[str, float]:
        return {name: value for task in self.tasks for name, value in task.measures(step).items()}

    def samples(self, model: Unified) -> Tensor | None:
        return self.drawing.samples(model) if self.drawing else None
