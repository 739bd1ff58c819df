"""Drawing in few steps, without guidance: the student learns to land where the teacher's many guided steps arrive.

The teacher draws once, in many steps; where it stood at the few times that matter is kept (distillation of a
deterministic sampler, arXiv:2101.02388).  Progressive distillation (arXiv:2202.00512) halves the steps again and again;
here all jumps are learned together, because the student is told the size of the step (arXiv:2410.12557), so one network
serves every number of steps.  Guidance is in the targets (arXiv:2210.03142): no second row, no second network.
Axes: r trajectories, k times, b batch, n image tokens, p numbers a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.model import checkpoint, flow
from edgemm.model.config import SamplerConfig
from edgemm.model.denoiser import Denoiser
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe_file import FewStepsRecipe
from edgemm.train.samples import batch_rows, pick_samples
from edgemm.train.stores import PromptStore, TeacherCache

__all__ = ["FewStepTask", "Trajectories", "record", "tell_step_size"]

CHUNK = 64  # trajectories in a file


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Where the teacher stood at times 0, 1/k, ..., 1 on its way from noise to picture."""

    captions: list[str]  # r
    states: Tensor  # (r, k + 1, n, p) float16; the first is the noise


def record(teacher: Unified, recipe: FewStepsRecipe, cache: TeacherCache) -> Trajectories:
    """Let the teacher draw the training captions, each with noise of its own; finished chunks are not drawn again."""
    _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures, recipe.caption)
    known = sorted({caption for sample in samples for caption in sample.captions})
    order = np.random.default_rng([recipe.seed, 4]).permutation(len(known))
    captions = [known[order[row % len(known)]] for row in range(recipe.trajectories)]
    scale = recipe.guidance or teacher.config.sampler.guidance_scale
    sampler = dataclasses.replace(
        teacher.config.sampler, num_inference_steps=recipe.teacher_steps, guidance_scale=scale, shift=1.0
    )
    tokens, states = teacher.config.image_tokens, []
    starts = range(0, len(captions), CHUNK)
    for start in progress.track(starts, len(starts), "teacher draws", "chunks"):
        rows = range(start, min(start + CHUNK, len(captions)))
        noise = np.stack(
            [
                np.random.default_rng([recipe.seed, row, 5]).standard_normal(
                    (tokens.token_count, tokens.token_width), dtype=np.float32
                )
                for row in rows
            ]
        )
        said = [captions[row] for row in rows]

        def draw(noise: np.ndarray = noise, said: list[str] = said) -> dict[str, Tensor]:
            return {
                "states": _walk(teacher, said, torch.from_numpy(noise), sampler, max(recipe.step_counts)).half().cpu()
            }

        states.append(cache.get(f"drawings-{start:06d}", draw)["states"])
    return Trajectories(captions, torch.cat(states))


@torch.no_grad()
def _walk(model: Unified, prompts: Sequence[str], noise: Tensor, sampler: SamplerConfig, kept: int) -> Tensor:
    """(b, kept + 1, n, p): the states at `kept` evenly spaced times, and the noise before them."""
    noise = noise.to(model.denoiser.position.device)
    prefix, free = model.prefix(prompts), model.prefix([""] * len(prompts))
    every = sampler.num_inference_steps // kept
    seen = [noise]

    def predict(x: Tensor, time: Tensor, size: Tensor) -> Tensor:
        if len(walked) % every == 0 and walked:
            seen.append(x)
        walked.append(time)
        return model.denoiser(x, time, prefix, size)

    walked: list[Tensor] = []
    last = flow.sample(predict, lambda x, t, size: model.denoiser(x, t, free, size), noise, sampler)
    return torch.stack([*seen, last], dim=1)


def tell_step_size(model: Unified, steps: int) -> None:
    """Give the denoiser its step-size input, which changes nothing yet, and a sampler of few steps without guidance."""
    config = dataclasses.replace(
        model.config,
        denoiser=dataclasses.replace(model.config.denoiser, step_size=True),
        sampler=dataclasses.replace(model.config.sampler, num_inference_steps=steps, guidance_scale=1.0, shift=1.0),
    )
    told = Denoiser(config)
    told.load_state_dict(model.denoiser.state_dict(), strict=model.config.denoiser.step_size)
    model.denoiser, model.config = told.to(model.denoiser.position.device).eval(), config


class FewStepTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(
        self, model: Unified, recipe: FewStepsRecipe, taught: Trajectories, share: Share | None = None
    ) -> None:
        self.model, self.recipe, self.taught, self.share = model, recipe, taught, share or Share()
        self.counts = recipe.step_counts
        tell_step_size(model, max(self.counts))
        known = sorted(set(taught.captions))
        row_of = {caption: row for row, caption in enumerate(known)}
        self.caption_of = torch.tensor([row_of[caption] for caption in taught.captions])
        self.store = PromptStore(model, known)
        self.trained = nn.ModuleDict({"conditioner": model.conditioner, "denoiser": model.denoiser})
        self.trained.requires_grad_(True)
        self.denoise = torch.compile(model.denoiser) if recipe.compile else model.denoiser
        self.description = f"{len(taught.captions)} drawings of the teacher, steps {', '.join(map(str, self.counts))}"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.trained.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.trained.named_buffers()

    def prepare(self) -> None:
        """The teacher's drawings were made before; nothing else comes before the first step."""

    def loss(self, step: int) -> Tensor:
        """Mean square of the difference to the clean tokens that would have led to where the teacher went."""
        largest, b, mine = max(self.counts), self.recipe.batch, self.share.of(self.recipe.batch)
        rows = torch.from_numpy(batch_rows(len(self.taught.captions), b, self.recipe.seed, step)[mine])
        random = np.random.default_rng([self.recipe.seed, step, 3])
        counts = np.array(self.counts)[random.integers(len(self.counts), size=b)]
        starts = (random.random(b) * counts).astype(int)[mine]
        jump = torch.from_numpy(largest // counts[mine])
        begin = torch.from_numpy(starts) * jump
        x, target = (self.taught.states[rows, at].to(self.device).float() for at in (begin, begin + jump))
        time, size = (value.to(self.device).float() / largest for value in (begin, jump))
        clean = x + (target - x) * ((1 - time) / size)[:, None, None]
        prefix = self.model.conditioner.adapt(*self.store.rows(self.caption_of[rows], cut=not self.recipe.compile))
        return (self.denoise(x, time, prefix, size).float() - clean).square().mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """How far the student's own walk ends from the teacher's, for every number of steps; mean square of pixels."""
        rows = torch.arange(min(8, len(self.taught.captions)))
        prefix = self.model.conditioner.adapt(*self.store.rows(self.caption_of[rows], cut=not self.recipe.compile))
        noise, last = (self.taught.states[rows, at].to(self.device).float() for at in (0, -1))
        drawn = self.model.to_pixels(last)
        found = {}
        for count in self.counts:
            x = noise
            for now, later in pairwise(flow.schedule(count, 1.0)):
                time = torch.full((len(rows),), now, device=self.device)
                clean = self.denoise(x, time, prefix, torch.full_like(time, later - now)).float()
                x = clean if later >= 1 else x + (later - now) / (1 - now) * (clean - x)
            found[f"from_teacher_in_{count}"] = (self.model.to_pixels(x) - drawn).square().mean().item()
        return found

    @property
    def device(self) -> torch.device:
        return self.model.denoiser.position.device

    def samples(self, model: Unified) -> Tensor:
        """Eight pictures of the student below the teacher's."""
        count = min(8, len(self.taught.captions))
        rows = [row % count for row in range(8)]
        noise, last = (self.taught.states[rows, at].to(self.device).float() for at in (0, -1))
        drawn = model.draw([self.taught.captions[row] for row in rows], noise)
        return torch.cat((self.model.to_pixels(last), drawn))

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path, torch.bfloat16)
