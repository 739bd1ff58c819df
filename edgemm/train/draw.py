"""Teaching to draw: the conditioner and the denoiser over a frozen transformer.

Flow matching with x-prediction; see model/flow.py.  A sample's caption, noise and time are functions of (seed, step,
place in the batch) alone: a run that was killed goes on as if it had not been, and many processes take a share each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.model import checkpoint, flow
from edgemm.model.image_tokens import pixels_to_tokens
from edgemm.model.unified import Unified
from edgemm.train.pictures import batch_rows, load_pictures, pick_samples
from edgemm.train.prompt_store import PromptStore
from edgemm.train.ranks import Share
from edgemm.train.recipe import Recipe

__all__ = ["DrawTask"]


class DrawTask:
    """What the loop trains: parameters, a loss a step, and pictures to look at."""

    def __init__(self, model: Unified, recipe: Recipe, share: Share | None = None) -> None:
        self.model, self.recipe, self.share = model, recipe, share or Share()
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        tokens = model.config.image_tokens
        self.pixels = load_pictures(Path(recipe.data), samples, tokens.image_size)
        captions = sorted({caption for sample in samples for caption in sample.captions})
        row_of = {caption: row + 1 for row, caption in enumerate(captions)}  # row 0 is the unconditional prompt
        self.captions_of = [[row_of[caption] for caption in sample.captions] for sample in samples]
        self.store = PromptStore(model, ["", *captions])
        if not model.conditioner.whiten_matrix.any():
            model.conditioner.fit_whitening(self.store.pooled()[1:])
        self.trained = nn.ModuleDict({"conditioner": model.conditioner, "denoiser": model.denoiser})
        self.trained.requires_grad_(True)
        self.denoise = torch.compile(model.denoiser) if recipe.compile else model.denoiser
        spread = np.linspace(0, len(samples) - 1, 16).astype(int)
        self.shown = [samples[row].captions[-1] for row in spread]
        self.description = f"{len(samples)} pictures, {len(captions)} captions"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.trained.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.trained.named_buffers()

    def prepare(self) -> None:
        """The whitening was fitted with the prompts; nothing else comes before the first step."""

    def loss(self, step: int) -> Tensor:
        tokens, noise, time, caption = self._batch(step)
        return flow.velocity_loss(
            self._predict(tokens, noise, time, caption), tokens, time, self.recipe.loss_floor
        ).mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How much the prompt matters: the loss with other pictures' prompts, over the loss with the right ones."""
        tokens, noise, time, caption = self._batch(step)
        losses = []
        for rows in (caption, caption.roll(1)):
            prediction = self._predict(tokens, noise, time, rows)
            losses.append(flow.velocity_loss(prediction, tokens, time, self.recipe.loss_floor).mean().item())
        return {"shuffled_over_right": losses[1] / losses[0]}

    def samples(self, model: Unified) -> Tensor:
        """Pictures (16, 3, H, W) of the same prompts and noise each time."""
        tokens = model.config.image_tokens
        noise = torch.randn(16, tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(0))
        return model.draw(self.shown, noise.to(self.device))

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path, torch.bfloat16)

    def _predict(self, tokens: Tensor, noise: Tensor, time: Tensor, caption: Tensor) -> Tensor:
        prefix = self.model.conditioner.adapt(*self.store.rows(caption, cut=not self.recipe.compile))
        return self.denoise(flow.noised(tokens, noise, time), time, prefix)

    @property
    def device(self) -> torch.device:
        return self.model.denoiser.position.device

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This process's tokens and noise (b, n, p), times (b) and rows of captions (b)."""
        recipe, config = self.recipe, self.model.config.image_tokens
        mine = self.share.of(recipe.batch)
        rows = batch_rows(len(self.pixels), recipe.batch, recipe.seed, step)[mine]
        noise = np.empty((len(rows), config.token_count, config.token_width), dtype=np.float32)
        normal, captions = np.empty(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
        for place, row in enumerate(rows):
            random = np.random.default_rng([recipe.seed, step, 1, mine.start + place])
            known = self.captions_of[row]
            caption = known[random.integers(len(known))]
            captions[place] = caption if random.random() >= recipe.drop_prompt else 0
            normal[place] = random.standard_normal(dtype=np.float32)
            random.standard_normal(dtype=np.float32, out=noise[place])
        time = flow.logit_normal_times(torch.from_numpy(normal), recipe.time_mean, recipe.time_spread)
        tokens = pixels_to_tokens(self.pixels[rows].to(self.device).float() / 255, config)
        return tokens, torch.from_numpy(noise).to(self.device), time.to(self.device), torch.from_numpy(captions)
