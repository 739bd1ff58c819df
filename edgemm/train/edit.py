"""Teaching to draw from a picture: it stands in the prefix as clean image tokens, the instruction behind it.

The loss is drawing's (draw.py); the pairs are the dataset's edits (data/edits.py).  The projection that turns pixels
into image tokens learns along, through the frozen transformer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgemm.errors import InputError
from edgemm.model import flow
from edgemm.train.draw import DrawTask, spread
from edgemm.train.pictures import load_pictures, pick_samples

__all__ = ["EditTask"]


class EditTask(DrawTask):
    """Drawing whose prompts are (picture, instruction); row i + 1 of the prompts belongs to edit i."""

    default_parts = ("conditioner", "denoiser", "projection")
    draws_from_pictures = True

    def load(self) -> None:
        recipe, config = self.recipe, self.model.config
        dataset, _ = pick_samples(recipe.data, recipe.splits, recipe.groups)
        edits = [edit for edit in dataset.edits if edit.split in recipe.splits]
        if not edits:
            raise InputError(f"{recipe.data}: no edits in splits {list(recipe.splits)}; make some: edgemm data edits")
        named = {name for edit in edits for name in (edit.source, edit.target)}
        samples = [sample for sample in dataset.samples if sample.id in named]
        row_of = {sample.id: row for row, sample in enumerate(samples)}
        self.sources = load_pictures(Path(recipe.data), samples, config.vision.image_size)
        self.source_of = [row_of[edit.source] for edit in edits]
        drawn = load_pictures(Path(recipe.data), samples, config.image_tokens.image_size)
        self.pixels = drawn[[row_of[edit.target] for edit in edits]]
        self.captions = ["", *(edit.instruction for edit in edits)]
        self.captions_of = [[row + 1] for row in range(len(edits))]
        self.shown = [row + 1 for row in spread(len(edits))]
        self.model.config = dataclasses.replace(config, edits=True)
        self.description = f"{len(edits)} edits of {len(samples)} pictures"

    def pictures(self, rows: Sequence[int]) -> Sequence[Tensor | None]:
        return [self.sources[self.source_of[row - 1]].float() / 255 if row else None for row in rows]

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How much the picture matters: the loss with other pictures and the right instructions, over the right one."""
        found = super().measures(step)
        tokens, noise, time, rows = self._batch(step)
        known = rows.tolist()
        pictured = [row for row in known if row]  # the others are unconditional, and draw from nothing
        another = iter(self.pictures(pictured[1:] + pictured[:1]))
        strange = [next(another) if row else None for row in known]
        losses = []
        for pictures in (self.pictures(known), strange):
            cached = self.model.prompt_cache([self.captions[row] for row in known], pictures)
            prediction = self.denoise(flow.noised(tokens, noise, time), time, self.model.conditioner(*cached))
            losses.append(flow.velocity_loss(prediction, tokens, time, self.recipe.loss_floor).mean().item())
        return {**found, "other_picture_over_right": losses[1] / losses[0]}
