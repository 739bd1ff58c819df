"""Teaching a transformer to say and to read a picture's codes: one loss, next-token cross-entropy, for both.

    draw   the codes that follow a caption; the empty one now and then, for guidance
    read   the answer that follows a question, behind the codes of its picture
    joint  both in one batch, half and half: L = cross-entropy of answers + flow_weight * cross-entropy of codes

Early fusion as in Chameleon (arXiv:2405.09818); the tokenizer is trained before (tokenizer.py) and frozen.  A
step's batch is a function of (seed, step) alone, of which many processes take a share each.
Axes: b batch, s tokens of the longest sequence, n codes of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.prompt import with_picture_ids
from edgemm.data.format import Sample
from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.prompts import codes_prompt
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import DrawRecipe, JointRecipe, ReadRecipe
from edgemm.train.samples import Asked, batch_rows, pick_samples, pictures_of, questions_about
from edgemm.train.tasks.draw import rows_to_show

__all__ = ["CodesTask"]

CHUNK = 64

Taught = tuple[list[int], list[int], list[int]]  # ids, last position each may see, ids to be said at the end


class CodesTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(
        self, model: Unified, recipe: DrawRecipe | ReadRecipe | JointRecipe, share: Share | None = None
    ) -> None:
        if set(recipe.train) - {"transformer"}:
            raise UsageError(f"recipe: train is {', '.join(recipe.train)}, a model of codes trains its transformer")
        unused = ("more", "more_captions", "replies", "blend", "align_steps", "word_steps", "compile")
        recipe.refuse("a model of codes learns without", *unused)
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self.drawing = None if isinstance(recipe, ReadRecipe) else recipe
        caption = self.drawing.caption if self.drawing else ""
        dataset, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures, caption)
        self.codes = self.drawn = self._codes_of(recipe.data, samples)  # (pictures, n)
        self.questions: list[Asked] = []
        if not isinstance(recipe, DrawRecipe):
            self.questions = questions_about(dataset, samples, recipe, model.config, model.tokenizer)
        if isinstance(recipe, JointRecipe) and recipe.draw_data:
            samples = pick_samples(recipe.draw_data, recipe.splits, recipe.groups, recipe.pictures, caption)[1]
            self.drawn = self._codes_of(recipe.draw_data, samples)
        self.captions = [sample.captions for sample in samples]
        self.shown = [samples[row].captions[-1] for row in rows_to_show(len(samples))]
        model.transformer.requires_grad_(True)
        self.description = f"{len(self.drawn)} pictures, {len(self.questions)} questions"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.transformer.named_parameters(prefix="transformer")

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return iter(())

    def prepare(self) -> None:
        """Nothing comes before the first step."""

    def loss(self, step: int) -> Tensor:
        drawn, read = self._losses(step)
        return read + (self.recipe.flow_weight if isinstance(self.recipe, JointRecipe) else 1) * drawn

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """Each loss by itself, and how much the caption matters: the loss with other pictures' over the right one."""
        drawn, read = self._losses(step)
        found = {"answers": read.item()} if self.questions else {}
        if not self.drawing:
            return found
        other = self._cross_entropy(self._drawings(step, turned=1))
        return found | {"codes": drawn.item(), "shuffled_over_right": (other / drawn).item()}

    def samples(self, model: Unified) -> Tensor | None:
        """Pictures (16, 3, H, W) of the same prompts, each code the likeliest."""
        return model.draw_codes(self.shown) if self.drawing else None

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path, torch.bfloat16)

    def _losses(self, step: int) -> tuple[Tensor, Tensor]:
        """Of codes and of answers, means over what is said in the batch of all processes, by this one's share."""
        nothing = torch.zeros((), device=self.model.device)
        drawn = self._cross_entropy(self._drawings(step)) if self.drawing else nothing
        return drawn, self._cross_entropy(self._readings(step)) if self.questions else nothing

    def _cross_entropy(self, sequences: list[Taught]) -> Tensor:
        mine = sequences[self.share.of(len(sequences))]
        longest, device = max(len(ids) + len(said) for ids, _, said in mine) - 1, self.model.device
        ids, targets = torch.zeros(len(mine), longest, dtype=torch.long), torch.full((len(mine), longest), -1)
        limit = torch.arange(longest).repeat(len(mine), 1)  # (b, s)
        for row, (asked, seen, said) in enumerate(mine):
            whole = [*asked, *said]
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            limit[row, : len(asked)] = torch.tensor(seen)
            targets[row, len(asked) - 1 : len(whole) - 1] = torch.tensor(said)
        scored, transformer = targets >= 0, self.model.transformer
        hidden, _ = transformer(transformer.embed_tokens(ids.to(device)), limit.to(device))
        logits = transformer.logits(hidden[scored.to(device)]).float()
        total = nn.functional.cross_entropy(logits, targets[scored].to(device), reduction="sum")
        return total * self.share.count / sum(len(said) for _, _, said in sequences)

    def _drawings(self, step: int, turned: int = 0) -> list[Taught]:
        """Captions and the codes of their pictures, or of the batch's pictures `turned` by so many places."""
        assert self.drawing
        rows = batch_rows(len(self.drawn), self._half, self.recipe.seed, step)
        random = np.random.default_rng([self.recipe.seed, step, 5])
        found: list[Taught] = []
        for row, pictured in zip(rows, np.roll(rows, turned), strict=True):
            known = self.captions[row]
            caption = known[random.integers(len(known))]
            caption = caption if random.random() >= self.drawing.drop_prompt else ""
            ids = codes_prompt(self.model.config, self.model.tokenizer, caption).input_ids.tolist()
            found.append((ids, list(range(len(ids))), self.drawn[pictured].tolist()))
        return found

    def _readings(self, step: int) -> list[Taught]:
        """Questions behind their pictures' codes, and the answers."""
        found: list[Taught] = []
        for which in batch_rows(len(self.questions), self._half, self.recipe.seed + 1, step):
            question = self.questions[which]
            asked = with_picture_ids(question.prompt, self.codes[question.row].numpy())
            found.append((asked.input_ids.tolist(), asked.attention_limit.tolist(), question.answer))
        return found

    @property
    def _half(self) -> int:
        return self.recipe.batch // 2 if isinstance(self.recipe, JointRecipe) else self.recipe.batch

    @torch.no_grad()
    def _codes_of(self, data: str, samples: list[Sample]) -> Tensor:
        """Token ids of every picture's codes, (pictures, n)."""
        vq, config = self.model.vq, self.model.config
        assert vq is not None
        pixels = pictures_of(Path(data), samples, config.image_tokens.image_size)
        chunks = [np.arange(start, min(start + CHUNK, len(samples))) for start in range(0, len(samples), CHUNK)]
        found = [vq.encode(pixels[rows].to(self.model.device).float() / 255) for rows in chunks]
        return torch.cat(found).cpu() + config.first_code
