"""A drawing and a reading task in one run, or either alone: the losses add up.

It knows the loop's interface (loop.py) and nothing of what the tasks do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgemm.model.unified import Unified
from edgemm.train.draw import DrawTask
from edgemm.train.read import ReadTask

__all__ = ["TwoTasks"]


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
