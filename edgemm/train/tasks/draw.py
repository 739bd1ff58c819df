"""Teaching to draw: the conditioner and the denoiser, over a frozen transformer or one that learns along.

Flow matching with x-prediction; see model/flow.py.  A sample's caption, noise and time are functions of (seed, step,
place in the batch) alone: a run that was killed goes on as if it had not been, and many processes take a share each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import CheckpointError, InputError
from edgemm.model import checkpoint, flow
from edgemm.model.conditioner import Prefix
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.train.optimizers import part_names, trained_parts
from edgemm.train.ranks import Share
from edgemm.train.recipe import Drawing, Flow
from edgemm.train.samples import (
    PicturesOnDisk,
    batch_rows,
    evenly,
    load_pictures,
    more_samples,
    pick_samples,
    pictures_of,
)
from edgemm.train.stores import PromptStore, QueryStore, fits_in_memory

__all__ = ["FITTED", "DrawTask", "rows_to_show", "EditTask"]

FITTED = 2048  # prompts that the whitening is fitted to where reading them all would take minutes
FOLLOW_EVERY = 25  # steps between two fits where the prompts themselves are learned


class DrawTask:
    """What the loop trains: parameters, a loss a step, and pictures to look at."""

    default_parts = ("conditioner", "denoiser")

    def __init__(self, model: Unified, recipe: Flow, share: Share | None = None) -> None:
        if model.config.denoiser.step_size:
            raise CheckpointError(
                f"{model.config.name} draws in few steps and learns from its teacher only: train the teacher, "
                "then distil again"
            )
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self.trained = trained_parts(model, part_names(recipe, model.config, self.default_parts))
        self.load()
        self.moving = bool({"transformer", "queries"} & set(self.trained))  # what the transformer says of a prompt
        anew = self.draws_from_pictures or self.moving  # whether prompts are read again at every step
        self.store: PromptStore | None = None
        if not anew and fits_in_memory(model, self.captions):
            self.store = PromptStore(model, self.captions)
        self.queries: QueryStore | None = None
        if self.trained.keys() & {"transformer", "queries"} == {"queries"} and not self.draws_from_pictures:
            self.queries = QueryStore(model, self.captions) if QueryStore.fits(model, self.captions) else None
        if not model.conditioner.whiten_matrix.any():
            model.conditioner.fit_whitening(self._pooled())
        self.trained.requires_grad_(True)
        model.image_encoder.keep_what_was_taught()
        self.denoise = torch.compile(model.denoiser) if recipe.compile else model.denoiser

    draws_from_pictures = False

    def load(self) -> None:
        """Pictures to draw, prompts, and which prompts each picture has; row 0 of the prompts is the unconditional."""
        recipe = self.recipe
        assert isinstance(recipe, Drawing)
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures, recipe.caption)
        samples += more_samples(recipe)
        tokens = self.model.config.image_tokens
        self.pixels: Tensor | PicturesOnDisk = pictures_of(Path(recipe.data), samples, tokens.image_size, tokens.frames)
        captions = sorted({caption for sample in samples for caption in sample.captions})
        self.captions = ["", *captions]
        row_of = {caption: row for row, caption in enumerate(self.captions)}
        self.captions_of = [[row_of[caption] for caption in sample.captions] for sample in samples]
        self.shown = [row_of[samples[row].captions[-1]] for row in rows_to_show(len(samples))]
        self.description = f"{len(samples)} pictures, {len(captions)} captions"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.trained.named_parameters() if parameter.requires_grad)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.model.conditioner.named_buffers(prefix="conditioner")

    def prepare(self) -> None:
        """The whitening was fitted with the prompts; nothing else comes before the first step."""

    def loss(self, step: int) -> Tensor:
        if self.moving and step and step % FOLLOW_EVERY == 0:
            few = 4 * self.model.config.denoiser.prompt_width
            self.model.conditioner.fit_whitening(self._pooled(min(few, FITTED)), follow=True)
        return self.flow_loss(step)

    def flow_loss(self, step: int) -> Tensor:
        """The same of the model as it is: what only measures moves nothing."""
        tokens, noise, time, prompts = self._batch(step)
        found = self._predict(tokens, noise, time, prompts)
        return flow.velocity_loss(found, tokens, time, self.recipe.loss_floor).mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How much the prompt matters: the loss with other pictures' prompts, over the loss with the right ones."""
        tokens, noise, time, prompts = self._batch(step)
        right, shuffled = (
            flow.velocity_loss(self._predict(tokens, noise, time, rows), tokens, time, self.recipe.loss_floor).mean()
            for rows in (prompts, prompts.roll(self.recipe.noises))
        )
        return {"shuffled_over_right": (shuffled / right).item()}

    def samples(self, model: Unified) -> Tensor:
        """Pictures (16, 3, H, W) of the same prompts and noise each time."""
        tokens = model.config.image_tokens
        noise = torch.randn(16, tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(0))
        pictures = self.pictures(self.shown)
        return model.draw([self.captions[row] for row in self.shown], noise.to(self.device), pictures=pictures)

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path, torch.bfloat16)

    def prefix(self, rows: Tensor) -> Prefix:
        """What the denoiser reads of some prompts."""
        if self.store is not None:
            return self.model.conditioner.adapt(*self.store.rows(rows, cut=not self.recipe.compile))
        unique, places = rows.unique(return_inverse=True)  # each is read once, however many pictures share it
        return self.model.conditioner(*self._read(unique.tolist())).of(places.to(self.device))

    def _read(self, rows: Sequence[int]) -> tuple[KeyValues, Tensor, Tensor]:
        """Keys and values, prompt mask and length of some prompts, as the transformer reads them now."""
        if self.queries is not None:
            return self.queries.read(torch.tensor(rows))
        return self.model.prompt_cache([self.captions[row] for row in rows], self.pictures(rows), learn=True)

    def pictures(self, rows: Sequence[int]) -> Sequence[Tensor | None] | None:
        """The pictures (3, S, S) that some prompts draw from."""
        return None

    @property
    def device(self) -> torch.device:
        return self.model.denoiser.position.device

    def _predict(self, tokens: Tensor, noise: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """The clean tokens (b, n, p) that the denoiser expects, for prompts by their rows."""
        return self.denoise(flow.noised(tokens, noise, time), time, self.prefix(rows))

    @torch.no_grad()
    def _pooled(self, most: int = FITTED) -> Tensor:
        if self.store is not None:
            return self.store.pooled()[1:]
        rows = np.linspace(1, len(self.captions) - 1, min(most, len(self.captions) - 1)).astype(int).tolist()
        chunks = [rows[start : start + 64] for start in range(0, len(rows), 64)]
        return torch.cat([self.model.conditioner.pool(*self._read(chunk)) for chunk in chunks])

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This process's tokens and noise (b, n, p), times (b) and rows of prompts (b)."""
        recipe, config = self.recipe, self.model.config.image_tokens
        mine = self.share.of(recipe.batch)
        rows = batch_rows(len(self.pixels), recipe.batch // recipe.noises, recipe.seed, step)
        rows = np.repeat(rows, recipe.noises)[mine]
        noise = np.empty((len(rows), config.token_count, config.token_width), dtype=np.float32)
        normal, prompts = np.empty(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
        for place, row in enumerate(rows):
            first = (mine.start + place) // recipe.noises * recipe.noises  # of those that see this picture and prompt
            random = np.random.default_rng([recipe.seed, step, 1, first])
            known = self.captions_of[row]
            prompt = known[random.integers(len(known))]
            prompts[place] = prompt if random.random() >= recipe.drop_prompt else 0
            if mine.start + place > first:
                random = np.random.default_rng([recipe.seed, step, 1, mine.start + place])
            normal[place] = random.standard_normal(dtype=np.float32)
            random.standard_normal(dtype=np.float32, out=noise[place])
        time = flow.logit_normal_times(torch.from_numpy(normal), recipe.time_mean, recipe.time_spread)
        with torch.no_grad():  # an autoencoder, if there is one, is not taught here
            tokens = self.model.to_tokens(self.pixels[rows].to(self.device).float() / 255)
        return tokens, torch.from_numpy(noise).to(self.device), time.to(self.device), torch.from_numpy(prompts)


def rows_to_show(count: int) -> list[int]:
    """16 rows to look at, spread evenly."""
    return np.linspace(0, count - 1, 16).astype(int).tolist()


# Teaching to draw from a picture: it stands in the prefix as clean image tokens, the instruction behind it.
#
# The loss is drawing's (draw.py); the pairs are the dataset's edits (data/edits.py).  The projection that turns pixels
# into image tokens learns along, through the frozen transformer.


class EditTask(DrawTask):
    """Drawing whose prompts are (picture, instruction); row i + 1 of the prompts belongs to edit i."""

    default_parts = ("conditioner", "denoiser", "projection")
    draws_from_pictures = True

    def load(self) -> None:
        recipe, config = self.recipe, self.model.config
        dataset, picked = pick_samples(recipe.data, recipe.splits, recipe.groups)
        known = {sample.id for sample in (dataset.samples if not recipe.groups else picked)}
        edits = [edit for edit in dataset.edits if edit.split in recipe.splits and {edit.source, edit.target} <= known]
        edits = evenly(edits, recipe.pictures)
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
        self.shown = [row + 1 for row in rows_to_show(len(edits))]
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
