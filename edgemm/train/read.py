"""Teaching to read: the projection behind the frozen eye, and LoRA on the upper layers of the transformer.

Next-token cross-entropy on the answer to a question about a picture, nothing else of the sequence is scored.  The
layers that the denoiser reads are not touched, so a model that draws goes on drawing exactly as before.
A step's batch is a function of (seed, step) alone.
Axes: b batch, s tokens of the longest sequence, v views of a picture, m image tokens, f features a token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.prompts import TextPrompt, read_prompt, reply_ids
from edgemm.model.unified import Unified
from edgemm.train.align import align_projection
from edgemm.train.pictures import batch_rows, load_pictures, pick_samples
from edgemm.train.recipe import Recipe

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["ReadTask"]


class ReadTask:
    """What the loop trains: projection and adapter; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: Recipe, peft: PeftModel | None = None) -> None:
        """`peft` is the transformer with an adapter already in place; without it the recipe says which."""
        depth, deepest = model.config.transformer.depth, max(model.config.denoiser.prefix_layers)
        if not deepest < recipe.lora_first_layer < depth:
            raise UsageError(
                f"recipe: lora_first_layer is {recipe.lora_first_layer}, expected {deepest + 1} to {depth - 1}: "
                f"the denoiser reads layers up to {deepest} of {depth}, and they must stay as they are"
            )
        self.model, self.recipe = model, recipe
        dataset, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        pixels = load_pictures(Path(recipe.data), samples, model.config.vision.image_size)
        self.features = eye_features(model, pixels, recipe.views, recipe.seed)  # (pictures, v, m, f)
        self.labels = [sample.label for sample in samples]
        row_of = {sample.id: row for row, sample in enumerate(samples)}
        self.questions: dict[str, list[tuple[int, TextPrompt, list[int]]]] = {}
        for question in dataset.questions:
            if question.sample in row_of:
                prompt = read_prompt(model.config, model.encode, question.question, 1)
                answer = reply_ids(model.config, model.encode, question.answer)
                self.questions.setdefault(question.kind, []).append((row_of[question.sample], prompt, answer))
        if not self.questions:
            raise InputError(f"{recipe.data}: no question is about the pictures of splits {list(recipe.splits)}")
        self.kinds = [kind for kind in sorted(self.questions) if kind != "label"]
        self.peft = peft if peft is not None else adapted(model, recipe)
        projection = {n: m for n, m in model.image_encoder.named_children() if n != "encoder"}
        self.projection = nn.ModuleDict(projection)
        self.position = model.image_encoder.position
        self._teach_projection(recipe.train_projection)
        counts = ", ".join(f"{len(questions)} {kind}" for kind, questions in self.questions.items())
        self.description = f"{len(samples)} pictures, questions: {counts}"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        if self.recipe.train_projection:
            yield from self._projection_parameters()
        for name, parameter in self.peft.named_parameters():
            if parameter.requires_grad:
                yield f"transformer.{name}", parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """An aligned projection that training leaves alone: a resume does not align again."""
        if not self.recipe.train_projection:
            yield from self._projection_parameters()

    def prepare(self) -> None:
        if self.recipe.align_steps:
            self._teach_projection(True)
            align_projection(self.model, self.features, self.labels, self.recipe.align_steps, self.recipe.seed)
            self._teach_projection(self.recipe.train_projection)

    def _projection_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "position", self.position
        for name, parameter in self.projection.named_parameters():
            yield f"projection.{name}", parameter

    def _teach_projection(self, taught: bool) -> None:
        for _, parameter in self._projection_parameters():
            parameter.requires_grad_(taught)

    def loss(self, step: int) -> Tensor:
        logits, targets = self._answer_logits(step)
        return nn.functional.cross_entropy(logits.float(), targets)

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        logits, targets = self._answer_logits(step)
        return {"token_accuracy": (logits.argmax(-1) == targets).float().mean().item()}

    def samples(self, model: Unified) -> None:
        return None

    def save(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.peft.save_pretrained(folder)
            Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's own empty model card
            checkpoint.save(self.model, path, torch.bfloat16, adapter=Path(folder))

    def _answer_logits(self, step: int) -> tuple[Tensor, Tensor]:
        """Logits (answer tokens of the batch, vocab) and their targets."""
        rows, prompts, answers, random = self._batch(step)
        views = random.integers(self.features.shape[1], size=len(rows))
        image_tokens = self.model.image_encoder.project(self.features[rows, views].float())  # (b, m, w)
        length = max(len(p.ids) + len(a) for p, a in zip(prompts, answers, strict=True)) - 1
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        index, limit = torch.full_like(ids, -1), torch.arange(length).repeat(len(rows), 1)
        targets = torch.full_like(ids, -1)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            asked, whole = len(prompt.ids), prompt.ids + answer
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            index[row, :asked] = torch.tensor(prompt.image_index)
            limit[row, :asked] = torch.tensor(prompt.attention_limit)
            targets[row, asked - 1 : len(whole) - 1] = torch.tensor(answer)
        x = self.model.transformer.embed(ids, image_tokens, index)
        hidden, _ = self.model.transformer(x, limit)
        scored = targets >= 0
        return self.model.transformer.logits(hidden[scored]), targets[scored]

    def _batch(self, step: int) -> tuple[np.ndarray, list[TextPrompt], list[list[int]], np.random.Generator]:
        """Half of the samples ask what it is, the others ask each other kind of question equally often."""
        random = np.random.default_rng([self.recipe.seed, step, 2])
        picked = []
        naming = self.questions.get("label", [])
        share = self.recipe.batch // 2 if self.kinds and naming else (self.recipe.batch if naming else 0)
        if share:
            picked += [naming[row] for row in batch_rows(len(naming), share, self.recipe.seed, step)]
        while len(picked) < self.recipe.batch:
            questions = self.questions[self.kinds[random.integers(len(self.kinds))]]
            picked.append(questions[random.integers(len(questions))])
        rows, prompts, answers = zip(*picked, strict=True)
        return np.array(rows), list(prompts), list(answers), random


def adapted(model: Unified, recipe: Recipe) -> PeftModel:
    """The transformer with LoRA in place: a new one, or the one that the model's checkpoint came with."""
    from peft import LoraConfig, PeftModel, get_peft_model

    layers = "|".join(map(str, range(recipe.lora_first_layer, model.config.transformer.depth)))
    wanted = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=rf"layers\.({layers})\.\w+\.({'|'.join(recipe.lora_targets)})",
    )
    inner: Any = model.transformer  # PEFT takes any module, its types say otherwise
    if model.adapter is None:
        peft: Any = get_peft_model(inner, wanted)
        return peft
    kept = LoraConfig.from_pretrained(str(model.adapter))
    for name in ("r", "lora_alpha", "target_modules"):
        if getattr(kept, name) != getattr(wanted, name):
            found, asked = getattr(kept, name), getattr(wanted, name)
            raise InputError(f"{model.adapter}: {name} is {found!r}, the recipe asks for {asked!r}; make them equal")
    return PeftModel.from_pretrained(inner, str(model.adapter), is_trainable=True)


@torch.no_grad()
def eye_features(model: Unified, pixels: Tensor, views: int, seed: int) -> Tensor:
    """The frozen encoder's features (pictures, v, m, f), bfloat16, of each picture and of changed views of it.

    A view is mirrored, moved, scaled and tinted a little, so that another artist's hand looks less new.
    """
    features = [model.image_encoder.features(chunk.float() / 255).bfloat16() for chunk in pixels.split(64)]
    stacked = [torch.cat(features)]
    for view in range(1, views):
        random = torch.Generator().manual_seed(seed * 1000 + view)
        features = [
            model.image_encoder.features(changed_view(chunk.float() / 255, random)).bfloat16()
            for chunk in pixels.split(64)
        ]
        stacked.append(torch.cat(features))
    return torch.stack(stacked, dim=1)


def changed_view(pixels: Tensor, random: torch.Generator) -> Tensor:
    """pixels (b, 3, S, S) in [0, 1], each mirrored (half of them), turned, scaled, moved and tinted on white."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=random) * (high - low) + low

    angle, scale = uniform(-0.25, 0.25), uniform(0.85, 1.25)
    mirror = (torch.rand(b, generator=random) < 0.5).float() * 2 - 1
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, uniform(-0.15, 0.15, 2)
    matrix = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], -1), torch.stack([sin * mirror, cos, shift[:, 1]], -1)], 1
    )
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = 1 + nn.functional.grid_sample(pixels - 1, grid, align_corners=False)  # white outside
    gain, lift = uniform(0.8, 1.2, 3, 1, 1), uniform(-0.05, 0.05, 3, 1, 1)
    tinted = 1 - (1 - moved) * gain + lift * (moved < 0.98)
    grey = tinted.mean(dim=1, keepdim=True)
    return (grey + (tinted - grey) * uniform(0.5, 1.3, 1, 1, 1)).clamp(0, 1)
