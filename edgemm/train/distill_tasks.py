"""The drawing and the reading task with a teacher beside them.

Drawing has new noise at every step, so its teacher runs along; reading's answers at a step depend on the recipe
alone, so they are kept on disk and found again by a resumed run or by the next student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.model import flow
from edgemm.model.unified import Unified
from edgemm.train.distill_losses import feature_loss, kept_words, word_loss
from edgemm.train.distill_recipe import DistillRecipe
from edgemm.train.draw import DrawTask
from edgemm.train.on_policy import jensen_shannon, own_answers
from edgemm.train.prompt_store import PromptStore
from edgemm.train.ranks import Share
from edgemm.train.read import ReadTask
from edgemm.train.replies import own_replies, prompts_about
from edgemm.train.teacher_cache import TeacherCache

__all__ = ["DistillDraw", "DistillRead"]


class DistillDraw(DrawTask):
    """The teacher's velocity, guided as it draws best, and its last features, where they have the same width."""

    def __init__(self, model: Unified, teacher: Unified, recipe: DistillRecipe, share: Share | None = None) -> None:
        super().__init__(model, recipe, share)
        self.teacher, self.weights = teacher, recipe
        self.teacher_store = PromptStore(teacher, self.captions)
        self.guidance = recipe.guidance or teacher.config.sampler.guidance_scale
        self.same_width = model.config.denoiser.width == teacher.config.denoiser.width

    def loss(self, step: int) -> Tensor:
        tokens, noise, time, caption = self._batch(step)
        caption, own = self._ask_others(step, caption)
        wanted, their_features = self._teach(flow.noised(tokens, noise, time), time, caption)
        with _seen(self.model.denoiser.norm) as features:
            found = self._predict(tokens, noise, time, caption)
        floor, weights = self.recipe.loss_floor, self.weights
        loss = flow.velocity_loss(found, wanted, time, floor).mean()
        data_loss = (flow.velocity_loss(found, tokens, time, floor) * own).sum() / own.sum().clamp(min=1)
        loss = loss + weights.data_weight * data_loss
        if self.same_width:
            loss = loss + weights.feature_weight * feature_loss(features[0], their_features)
        return loss

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        tokens, noise, time, caption = self._batch(step)
        wanted, _ = self._teach(flow.noised(tokens, noise, time), time, caption)
        found = self._predict(tokens, noise, time, caption)
        far = flow.velocity_loss(found, wanted, time, self.recipe.loss_floor).mean().item()
        return super().measures(step) | {"from_teacher_drawing": far}

    def _ask_others(self, step: int, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of prompts (b), a share of them drawn from all prompts, and which are the picture's own (b, 0 or 1).

        What a teacher answers is a target whatever the picture is of, and there are far more such pairs than pictures.
        """
        mine = self.share.of(self.recipe.batch)
        random = np.random.default_rng([self.recipe.seed, step, 8])
        other = torch.from_numpy(random.random(self.recipe.batch)[mine] < self.weights.other_prompts)
        asked = torch.from_numpy(random.integers(1, len(self.captions), self.recipe.batch)[mine])
        return torch.where(other, asked, caption), (~other).to(self.device, torch.float32)

    @torch.no_grad()
    def _teach(self, x: Tensor, time: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's guided prediction for noisy tokens (b, n, p), and its last features (b, n, w)."""

        def predict(rows: Tensor) -> Tensor:
            return self.teacher.denoiser(
                x, time, self.teacher.conditioner.adapt(*self.teacher_store.rows(rows))
            ).float()

        with _seen(self.teacher.denoiser.norm) as features:
            wanted = predict(caption)
        if self.guidance != 1:
            free = predict(torch.zeros_like(caption))
            wanted = free + self.guidance * (wanted - free)  # the unconditional rows stay what they are
        return wanted, features[0]


class DistillRead(ReadTask):
    """The teacher's next words at a temperature and its last hidden states, on the answers of the data."""

    def __init__(
        self, model: Unified, teacher: Unified, recipe: DistillRecipe, cache: TeacherCache, share: Share | None = None
    ) -> None:
        super().__init__(model, dataclasses.replace(recipe, replies=0), share=share)
        self.teacher, self.weights, self.cache = teacher, recipe, cache
        messages = prompts_about(sorted(set(self.labels)), recipe.replies)
        self.replies = own_replies(teacher, messages, recipe.reply_tokens)  # the teacher's: a cut student talks badly

    def loss(self, step: int) -> Tensor:
        if np.random.default_rng([self.recipe.seed, step, 6]).random() < self.weights.on_policy:
            return self._on_policy(step)
        hidden, targets, _ = self.last_hidden(self.model, step)
        taught, weights = self._teach(step), self.weights
        logits = self.model.transformer.logits(hidden)
        loss = word_loss(logits, taught["words"].long(), taught["log_probabilities"], weights.temperature)
        loss = loss + weights.data_weight * nn.functional.cross_entropy(logits.float(), targets)
        return loss + weights.feature_weight * feature_loss(hidden, taught["features"])

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        hidden, _, _ = self.last_hidden(self.model, step)
        taught, logits = self._teach(step), self.model.transformer.logits(hidden)
        agree = (logits.argmax(-1) == taught["words"][:, 0]).float().mean().item()
        far = word_loss(logits, taught["words"].long(), taught["log_probabilities"], self.weights.temperature).item()
        return super().measures(step) | {"from_teacher_reading": far, "same_word_as_teacher": agree}

    def _on_policy(self, step: int) -> Tensor:
        """The teacher on the student's own answer, which no file can know before."""
        features, prompts, _ = self.asked(step)
        seed = int(np.random.default_rng([self.recipe.seed, step, self.share.rank, 7]).integers(2**62))
        answers = own_answers(self, self.model, features, prompts, self.recipe.reply_tokens, seed)
        hidden, _, _ = self.answered(self.model, features, prompts, answers)
        with torch.no_grad():
            theirs, _, _ = self.answered(self.teacher, features, prompts, answers)
            judged = self.teacher.transformer.logits(theirs)
        loss = jensen_shannon(self.model.transformer.logits(hidden), judged, self.weights.temperature)
        return loss + self.weights.feature_weight * feature_loss(hidden, theirs)

    def _teach(self, step: int) -> dict[str, Tensor]:
        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            hidden, _, _ = self.last_hidden(self.teacher, step)
            logits = self.teacher.transformer.logits(hidden)
            words, known = kept_words(logits, self.weights.temperature, self.weights.top_words)
            return {"words": words.int(), "log_probabilities": known.half(), "features": hidden.bfloat16()}

        part = f"-{self.share.rank}-of-{self.share.count}" if self.share.count > 1 else ""
        found = self.cache.get(f"reading-{step:06d}{part}", compute)
        return {name: tensor.to(self.model.image_encoder.position.device) for name, tensor in found.items()}


@contextmanager
def _seen(module: nn.Module) -> Iterator[list[Tensor]]:
    """What enters a module in between."""
    inputs: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()
