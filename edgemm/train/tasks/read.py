"""Teaching to read: the projection behind the frozen eye, and LoRA on the upper layers of the transformer.

Next-token cross-entropy on the answer to a question about a picture, and on the model's own earlier replies to text
(samples.py), so that it goes on talking; nothing else of a sequence is scored.  The layers that the denoiser reads are
not touched, so a model that draws goes on drawing exactly as before.
A step's batch is a function of (seed, step) alone, of which many processes take a share each.
A clip is read as its frames, one after the other.
Axes: b batch, s tokens of the longest sequence, v views of a picture, m image tokens of it or of all frames of a clip,
f features a token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.prompt import Prompt
from edgemm.data.format import Sample
from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.padding import by_length, in_row_order
from edgemm.model.prompts import read_prompt, reply_ids, text_loop
from edgemm.model.unified import Unified
from edgemm.model.vision import ConvEye, ImageEncoder
from edgemm.train.optimizers import part_names
from edgemm.train.ranks import Share
from edgemm.train.recipe import Answering, Reading
from edgemm.train.samples import batch_rows, load_pictures, own_replies, pick_samples, prompts_about, questions_about
from edgemm.train.tasks.align import (
    align_projection,
    clip_features,
    eye_features,
    features_key,
    kept_features,
    learn_words,
    may_be_mirrored,
)

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["DESCRIBE", "ReadTask"]

DESCRIBE = "Describe the picture."


class ReadTask:
    """What the loop trains: projection and adapter; see train/loop.py for the interface."""

    def __init__(
        self, model: Unified, recipe: Answering, peft: PeftModel | None = None, share: Share | None = None
    ) -> None:
        """`peft` is the transformer with an adapter already in place; without it the recipe says which."""
        # whether every weight of it learns, and drawing has to learn along
        self.whole = "transformer" in part_names(recipe, model.config)
        if not self.whole:
            check_adapted_layers(model, recipe)
        self.model, self.recipe, self.share = model, recipe, share or Share()
        dataset, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        frames, size = samples[0].frames, model.config.vision.image_size
        if frames > 1 and recipe.views > 1:
            raise UsageError(f"recipe: views is {recipe.views}, and each frame of a clip would change alone; give 1")
        tall = load_pictures(Path(recipe.data), samples, size, frames)  # (clips, 3, frames * S, S)
        mirrored = torch.tensor([may_be_mirrored(sample) for sample in samples])
        self.frames, self.ends = frames, ends_of(model, frames)
        self.features = self._features(samples, tall, mirrored)
        self.labels = [sample.label for sample in samples]
        self.goes_on = [len((sample.scene or {}).get("objects", ())) == 1 for sample in samples]  # from the start on
        self.described = captions_of(model, samples, frames) if recipe.caption_share else []
        self.questions: dict[str, list[tuple[int, Prompt, list[int]]]] = {}
        for asked in questions_about(dataset, samples, recipe, model.config, model.tokenizer, frames):
            self.questions.setdefault(asked.kind, []).append((asked.row, asked.prompt, asked.answer))
        self.kinds = [kind for kind in sorted(self.questions) if kind != "label"]
        counts = np.array([len(self.questions[kind]) for kind in self.kinds])
        self.kind_shares = np.sqrt(counts) / np.sqrt(counts).sum()  # the rare are asked more often than they come
        messages = prompts_about(sorted(set(self.labels)), recipe.replies)
        with peft.disable_adapter() if peft is not None else nullcontext():
            self.replies = own_replies(model, messages, recipe.reply_tokens)
        self._choose_weights(peft)
        asks = ", ".join(f"{len(questions)} {kind}" for kind, questions in self.questions.items())
        self.description = f"{len(samples)} pictures, questions: {asks}"

    def _features(self, samples: Sequence[Sample], tall: Tensor, mirrored: Tensor) -> Tensor:
        """What the frozen eyes see of `tall` (clips, 3, frames * S, S): (clips, v, m, f), kept in the run's folder."""
        model, recipe, size = self.model, self.recipe, self.model.config.vision.image_size
        eyes = [eye.encoder for eye in (model.image_encoder, model.motion_encoder) if eye is not None]
        own = [eye for eye in eyes if isinstance(eye, ConvEye)]
        return kept_features(
            Path(recipe.output) / "features.safetensors",
            features_key(recipe, samples, model.config.vision, own),
            lambda: (
                eye_features(model, tall, mirrored, recipe.views, recipe.seed)
                if self.frames == 1
                else clip_features(model, tall.unflatten(2, (self.frames, size)).transpose(1, 2))
            ),
        )

    def _choose_weights(self, peft: PeftModel | None) -> None:
        """Which weights learn: an adapter or the whole transformer, and the projection where the recipe says so."""
        model, recipe = self.model, self.recipe
        self.peft = peft
        if peft is None and not self.whole:
            assert isinstance(recipe, Reading)  # only there the transformer comes without an adapter
            self.peft = adapted(model, recipe)
        if self.whole:
            model.transformer.requires_grad_(True)
        self.projection = nn.ModuleDict(behind(model.image_encoder))
        if model.motion_encoder is not None:
            self.projection["motion"] = nn.ModuleDict(behind(model.motion_encoder))
        self.teaches_projection = isinstance(recipe, Reading) and recipe.train_projection
        self._teach_projection(self.teaches_projection)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        if self.teaches_projection:
            yield from self._projection_parameters()
        for name, parameter in (self.peft or self.model.transformer).named_parameters():
            if parameter.requires_grad:
                yield f"transformer.{name}", parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What alignment made and training leaves alone: a resume does not align again."""
        if not self.teaches_projection:
            yield from self._projection_parameters()
        if self.model.image_encoder.words is not None:
            for name, tensor in self.model.image_encoder.words.state_dict(keep_vars=True).items():
                yield f"projection.words.{name}", tensor

    def prepare(self) -> None:
        """Alignment, where the recipe asks for it."""
        if not isinstance(self.recipe, Reading):
            return
        self._teach_projection(True)
        for steps, teach in ((self.recipe.align_steps, align_projection), (self.recipe.word_steps, learn_words)):
            if steps:
                teach(self.model, self.features, self.labels, steps, self.recipe.seed)
        self._teach_projection(self.teaches_projection)

    def _projection_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "position", self.model.image_encoder.position
        if self.model.motion_encoder is not None:
            yield "motion_position", self.model.motion_encoder.position
        for name, parameter in self.projection.named_parameters():
            yield f"projection.{name}", parameter

    def _teach_projection(self, taught: bool) -> None:
        for _, parameter in self._projection_parameters():
            parameter.requires_grad_(taught)

    def loss(self, step: int) -> Tensor:
        """Mean over the answers' tokens, and over the replies' with a weight of their own: replies are longer.

        With many processes these are means over all of their tokens: it is the mean of what each of them returns.
        """
        logits, targets, pictured = self._scored(step)
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        answers, replies = (max(1, count) / self.share.count for count in self._token_counts(step))
        return losses[pictured].sum() / answers + self.recipe.reply_weight * losses[~pictured].sum() / replies

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        logits, targets, pictured = self._scored(step)
        right = (logits.argmax(-1) == targets).float()
        answers, replies = self._token_counts(step)
        found = {"token_accuracy": right[pictured].sum().item() * self.share.count / answers}
        if replies:
            found["reply_accuracy"] = right[~pictured].sum().item() * self.share.count / replies
        return found

    def samples(self, model: Unified) -> None:
        return None

    def save(self, path: Path) -> None:
        if self.peft is None:
            checkpoint.save(self.model, path, torch.bfloat16)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.peft.save_pretrained(folder)
            Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's own empty model card
            checkpoint.save(self.model, path, torch.bfloat16, adapter=Path(folder))

    def _scored(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's logits (scored tokens, vocab), their targets, and which answer a question about a picture."""
        hidden, targets, pictured = self.last_hidden(self.model, step)
        return self.model.transformer.logits(hidden), targets, pictured

    def last_hidden(self, model: Unified, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same as hidden states (scored tokens, w), of this model or of a teacher with the same eye."""
        return self.answered(model, *self.asked(step))

    def asked(self, step: int) -> tuple[Tensor, list[Prompt], list[list[int]]]:
        """This process's features (b, m, f), prompts and answers of a step."""
        rows, prompts, answers, random = self._batch(step)
        views = random.integers(self.features.shape[1], size=len(rows))
        mine = self.share.of(len(rows))
        return self._blended(rows, views, random)[mine], prompts[mine], answers[mine]

    def answered(
        self, model: Unified, features: Tensor, prompts: Sequence[Prompt], answers: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states (scored tokens, w) before each token of the answers, row by row, the tokens, and which of
        them answer a question about a picture."""
        groups = by_length([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])
        found = [
            self._answered(model, features[rows], [prompts[row] for row in rows], [answers[row] for row in rows])
            for rows in groups
        ]
        counts = [len(answer) for answer in answers]
        hidden, targets, pictured = (in_row_order(part, groups, counts) for part in zip(*found, strict=True))
        return hidden, targets, pictured

    def _answered(
        self, model: Unified, features: Tensor, prompts: Sequence[Prompt], answers: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of rows that are filled up to the longest of them."""
        device = model.image_encoder.position.device
        image_tokens = model.clip_tokens(features.to(device), self.frames)  # (b, m, w)
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) - 1
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        index, limit = torch.full_like(ids, -1), torch.arange(length).repeat(len(prompts), 1)
        targets = torch.full_like(ids, -1)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            asked, whole = len(prompt), prompt.input_ids.tolist() + answer
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            index[row, :asked] = torch.from_numpy(prompt.image_index)
            limit[row, :asked] = torch.from_numpy(prompt.attention_limit)
            targets[row, asked - 1 : len(whole) - 1] = torch.tensor(answer)
        scored, pictured = targets >= 0, torch.tensor([prompt.is_pictured for prompt in prompts])
        pictured = pictured[:, None].expand_as(scored).to(device)
        ids, index, limit, targets, scored = (t.to(device) for t in (ids, index, limit, targets, scored))
        hidden, _ = model.transformer(model.transformer.embed(ids, image_tokens, index), limit, pictured=index >= 0)
        return hidden[scored], targets[scored], pictured[scored]

    def _token_counts(self, step: int) -> tuple[int, int]:
        """Scored tokens of answers about pictures and of replies to text, in the batch of all processes."""
        _, prompts, answers, _ = self._batch(step)
        counts = [len(answer) if prompt.is_pictured else 0 for prompt, answer in zip(prompts, answers, strict=True)]
        return sum(counts), sum(map(len, answers)) - sum(counts)

    def _blended(self, rows: np.ndarray, views: np.ndarray, random: np.random.Generator) -> Tensor:
        """The views' features (b, m, f), each with a share of another picture's, up to recipe.blend, mixed in."""
        features = self.features[rows, views].float()
        if not self.recipe.blend:
            return features
        shares = torch.from_numpy(random.uniform(0, self.recipe.blend, len(rows))).float()[:, None, None]
        others = self.features[random.integers(len(self.features), size=len(rows)), 0].float()
        return torch.lerp(features, others, shares)

    def _batch(self, step: int) -> tuple[np.ndarray, list[Prompt], list[list[int]], np.random.Generator]:
        """Some text without a picture, some captions; of the others `label_share` ask what it is, the rest the
        other kinds of question."""
        random = np.random.default_rng([self.recipe.seed, step, 2])
        texts = round(self.recipe.batch * self.recipe.reply_share) if self.replies else 0
        picked = [(0, *self.replies[row]) for row in random.integers(max(1, len(self.replies)), size=texts)]
        captions = round(self.recipe.batch * self.recipe.caption_share)
        picked += [self.described[row] for row in random.integers(max(1, len(self.described)), size=captions)]
        naming, left = self.questions.get("label", []), self.recipe.batch - texts - captions
        share = int(left * self.recipe.label_share) if self.kinds and naming else (left if naming else 0)
        if share:
            picked += [naming[row] for row in batch_rows(len(naming), share, self.recipe.seed, step)]
        while len(picked) < self.recipe.batch:
            questions = self.questions[self.kinds[random.choice(len(self.kinds), p=self.kind_shares)]]
            picked.append(questions[random.integers(len(questions))])
        rows, prompts, answers = zip(*picked, strict=True)
        cuts = round(self.recipe.batch * self.recipe.cut_share) if self.frames > 2 else 0
        shown = list(prompts)
        for place in random.integers(len(shown), size=cuts):
            if self.goes_on[rows[place]]:
                shown[place] = up_to(shown[place], self.ends[random.integers(1, self.frames)])
        return np.array(rows), shown, list(answers), random


def behind(encoder: ImageEncoder) -> dict[str, nn.Module]:
    """What an eye's features go through: all of an encoder that learns to be read; word_steps alone teaches words."""
    return {name: module for name, module in encoder.named_children() if name not in ("encoder", "words")}


def captions_of(model: Unified, samples: Sequence[Sample], pictures: int) -> list[tuple[int, Prompt, list[int]]]:
    """Each sample's row, the prompt of all, what to say: a caption holds more of a picture than any question asks."""
    prompt = read_prompt(model.config, model.tokenizer, DESCRIBE, pictures, clip=pictures > 1)
    said = (reply_ids(model.config, model.tokenizer, sample.captions[-1]) for sample in samples)
    return [(row, prompt, ids) for row, ids in enumerate(said)]


def ends_of(model: Unified, frames: int) -> list[int]:
    """Rows that a clip has up to each of its frames."""
    loop = text_loop(model.config, model.tokenizer)
    return np.cumsum([loop.rows_of(frame) for frame in loop.clip((None,) * frames)]).tolist()


def up_to(prompt: Prompt, rows: int) -> Prompt:
    """The same question about the first so many rows of a clip."""
    kept = prompt.image_index < rows
    gone = np.cumsum(~kept)[prompt.attention_limit]
    return Prompt(
        prompt.input_ids[kept], prompt.image_index[kept], (prompt.attention_limit - gone)[kept], prompt.users_own[kept]
    )


def check_adapted_layers(model: Unified, recipe: Answering) -> None:
    """UsageError where an adapter would change what drawing reads, or has no layer above it."""
    depth, deepest = model.config.transformer.depth, max(model.config.denoiser.prefix_layers)
    if deepest == depth - 1:
        raise UsageError(
            f"recipe: drawing reads all {depth} layers of this model, so none is left for an adapter; "
            'give train = ["projection", "transformer"], and draw jointly'
        )
    if not deepest < recipe.lora_first_layer < depth:
        raise UsageError(
            f"recipe: lora_first_layer is {recipe.lora_first_layer}, expected {deepest + 1} to {depth - 1}: "
            f"the denoiser reads layers up to {deepest} of {depth}, and they must stay as they are"
        )


def adapted(model: Unified, recipe: Reading) -> PeftModel:
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
