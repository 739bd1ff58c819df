"""The drawing and the reading task with a teacher beside them.

Drawing has new noise at every step, so its teacher runs along; reading's answers at a step depend on the recipe
alone, so they are kept on disk and found again by a resumed run or by the next student.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.prompt import Prompt
from edgemm.model import flow
from edgemm.model.prompts import stop_ids
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe_file import StudentRecipe
from edgemm.train.samples import own_replies, prompts_about
from edgemm.train.stores import PromptStore, TeacherCache
from edgemm.train.tasks.draw import DrawTask
from edgemm.train.tasks.read import ReadTask

__all__ = ["DistillDraw", "DistillRead", "feature_loss", "kept_words", "word_loss", "jensen_shannon", "own_answers"]


class DistillDraw(DrawTask):
    """The teacher's velocity, guided as it draws best, and its last features, where they have the same width."""

    def __init__(self, model: Unified, teacher: Unified, recipe: StudentRecipe, share: Share | None = None) -> None:
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
        self, model: Unified, teacher: Unified, recipe: StudentRecipe, cache: TeacherCache, share: Share | None = None
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


# What a student is asked to copy: the teacher's next words, its velocity, and the direction of its last features.
#
# Pure functions; who the two are is in distill.py.
# Axes: a answer tokens, k words kept, b batch, n image tokens, w width.


def kept_words(logits: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
    """Of logits (a, vocab): the likeliest words (a, k) and their log-probabilities (a, k) at the temperature."""
    best = (logits.float() / temperature).log_softmax(dim=-1).topk(min(count, logits.shape[-1]), dim=-1)
    return best.indices, best.values


def word_loss(logits: Tensor, words: Tensor, log_probabilities: Tensor, temperature: float) -> Tensor:
    """Forward KL from teacher to student, times the temperature's square (arXiv:1503.02531), a scalar.

    Words that were not kept count as one more word, with what is left of the probability on either side.
    """
    ours = (logits.float() / temperature).log_softmax(dim=-1).gather(1, words)  # (a, k)
    theirs = log_probabilities.float()
    left, own_left = (_log_rest(known) for known in (theirs, ours))
    theirs, ours = torch.cat((theirs, left), dim=1), torch.cat((ours, own_left), dim=1)
    return (theirs.exp() * (theirs - ours)).sum(dim=1).mean() * temperature**2


def _log_rest(log_probabilities: Tensor) -> Tensor:
    """Log of 1 - the sum (a, 1), bounded below where the kept words are all there is."""
    return (1 - log_probabilities.exp().sum(dim=1, keepdim=True)).clamp(min=1e-6).log()


def feature_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - cosine between features (..., w) of the same place, a scalar: the direction is copied, the length is free."""
    return (1 - nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)).mean()


# On-policy distillation: the student answers by itself, and the teacher judges every word that it chose.
#
# A student that only ever sees the data's answers is never taught what to do after a word of its own
# (arXiv:2306.13649).
# The divergence is the generalized Jensen-Shannon one of that paper at beta = 1/2, over all words.
# Axes: a answer tokens, b batch, m image tokens, f features a token.


@torch.no_grad()
def own_answers(
    task: ReadTask, model: Unified, features: Tensor, prompts: Sequence[Prompt], new_tokens: int, seed: int
) -> list[list[int]]:
    """The model's sampled answers to prompts over features (b, m, f): at most `new_tokens` ids each, the one that ends
    it among them."""
    stops = set(stop_ids(model.config, model.tokenizer))
    random = torch.Generator(model.device).manual_seed(seed)
    said: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(new_tokens):
        if not going:
            break
        # a token stands in for the one that is asked for: what comes before it is what is scored
        tried = [[*said[row], 0] for row in going]
        hidden, _, _ = task.answered(model, features[going], [prompts[row] for row in going], tried)
        last = torch.tensor([len(answer) for answer in tried]).cumsum(0) - 1
        words = model.transformer.logits(hidden[last.to(hidden.device)]).float().softmax(dim=-1)  # (b, vocab)
        for row, token in zip(going, torch.multinomial(words, 1, generator=random)[:, 0].tolist(), strict=True):
            said[row].append(token)
        going = [row for row in going if said[row][-1] not in stops]
    return said


def jensen_shannon(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Mean divergence of logits (a, vocab) at a temperature, times its square, a scalar; at temperature 1 at most
    ln 2."""
    own, other = ((logits.float() / temperature).log_softmax(dim=-1) for logits in (ours, theirs))
    middle = torch.logaddexp(own, other) - math.log(2)
    one, two = (nn.functional.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (own, other))
    return (one + two) / 2 * temperature**2
