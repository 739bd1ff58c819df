"""A dataset's pictures and captions in memory, picked by split and group.

Knows files and arrays; what a task makes of them is in draw.py and read.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from edgemm import progress
from edgemm.bundle.files import check_is_file, reading
from edgemm.bundle.prompt import Prompt, Tokenizer
from edgemm.data.format import Dataset, Sample, read_dataset
from edgemm.errors import InputError
from edgemm.model.codes import BatchDecode
from edgemm.model.config import ModelConfig
from edgemm.model.prompts import read_prompt, reply_ids, stop_ids
from edgemm.model.unified import Unified
from edgemm.train.recipe import CAPTION, Drawing, Recipe

__all__ = [
    "PicturesOnDisk",
    "batch_rows",
    "evenly",
    "load_pictures",
    "more_samples",
    "pick_samples",
    "pictures_of",
    "Asked",
    "questions_about",
    "Reply",
    "own_replies",
    "prompts_about",
    "texts_of",
]

Item = TypeVar("Item")
IN_MEMORY_BYTES = 4 << 30  # of pictures, in each process


def pick_samples(
    path: str | Path, splits: Sequence[str], groups: Sequence[str], count: int = 0, caption: str = ""
) -> tuple[Dataset, list[Sample]]:
    """The samples of the splits and groups (none: all), or `count` of them, spread evenly over the list.

    With a `caption` such as "{caption}, noto style" each has that one, with its first in it.
    Raises InputError when nothing is left; of groups that none is in, a line says so.
    """
    dataset = read_dataset(path)
    samples = [s for s in dataset.samples if s.split in splits and (not groups or s.group in groups)]
    known = sorted({s.group for s in dataset.samples})
    if not samples:
        raise InputError(f"{path}: no picture is in splits {list(splits)} and groups {list(groups)}; groups: {known}")
    if unknown := [group for group in groups if group not in known]:
        progress.line(f"{path}: no picture is in groups {unknown}; groups: {known}")
    samples = evenly(samples, count)
    if caption:
        samples = [replace(s, captions=(caption.replace(CAPTION, s.captions[0]),)) for s in samples]
    return dataset, samples


def more_samples(recipe: Drawing) -> list[Sample]:
    """All samples of the recipe's further folders in its splits; `image` is the file's whole path, so that it is found
    from any folder."""
    found = []
    for folder in recipe.more:
        for sample in pick_samples(folder, recipe.splits, (), caption=recipe.caption)[1]:
            image = str(Path(folder).resolve() / sample.image)
            found.append(replace(sample, image=image, captions=sample.captions[-recipe.more_captions :]))
    return found


def evenly(items: list[Item], count: int) -> list[Item]:
    """`count` of them, spread evenly over the list; 0: all."""
    if not 0 < count < len(items):
        return items
    return [items[row] for row in np.linspace(0, len(items) - 1, count).round().astype(int)]


def texts_of(dataset: Dataset, splits: Sequence[str]) -> list[str]:
    """What a dataset says of the pictures of some splits: their captions, questions and answers."""
    told = [text for sample in dataset.split(*splits) for text in (sample.label, *sample.tags, *sample.captions)]
    asked = [f"{one.question}\n{one.answer}" for one in dataset.questions if one.split in splits]
    return told + asked


def load_pictures(dataset: Path, samples: Sequence[Sample], size: int, frames: int = 1) -> Tensor:
    """uint8 (count, 3, frames * size, size): of clips, frame below frame."""
    from PIL import Image

    pictures = np.empty((len(samples), 3, frames * size, size), dtype=np.uint8)
    for row, sample in enumerate(samples):
        path = dataset / sample.image
        with reading(path, "damaged; rebuild the dataset"), Image.open(check_is_file(path, "a picture")) as image:
            picture = image.convert("RGB")
        side = picture.width
        if frames > 1 and picture.height != frames * side:
            raise InputError(f"{path}: {side} x {picture.height} pixels, expected {frames} squares")
        for frame in range(frames):
            one = picture if frames == 1 else picture.crop((0, frame * side, side, (frame + 1) * side))
            if one.size != (size, size):
                one = one.resize((size, size), Image.Resampling.BICUBIC)
            pictures[row, :, frame * size : (frame + 1) * size] = np.asarray(one).transpose(2, 0, 1)
    return torch.from_numpy(pictures)


class PicturesOnDisk:
    """More pictures than memory should hold: indexed like the tensor of all of them, read when a batch asks."""

    def __init__(self, dataset: Path, samples: Sequence[Sample], size: int, frames: int = 1) -> None:
        self.dataset, self.samples, self.size, self.frames = dataset, samples, size, frames

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        return load_pictures(self.dataset, [self.samples[row] for row in rows], self.size, self.frames)


def pictures_of(dataset: Path, samples: Sequence[Sample], size: int, frames: int = 1) -> Tensor | PicturesOnDisk:
    """All pictures, uint8 (count, 3, frames * size, size): in memory where they fit."""
    if len(samples) * 3 * frames * size * size > IN_MEMORY_BYTES:
        return PicturesOnDisk(dataset, samples, size, frames)
    return load_pictures(dataset, samples, size, frames)


def batch_rows(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Rows of a step's batch: each pass over the data is a new permutation; a step needs no memory of earlier ones."""
    rows = []
    position = step * batch
    while len(rows) < batch:
        epoch, offset = divmod(position + len(rows), count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        rows += order[offset : offset + batch - len(rows)].tolist()
    return np.array(rows)


# A dataset's questions about some of its pictures, as prompts and the ids of their answers.


@dataclass(frozen=True)
class Asked:
    kind: str
    row: int  # of the picture, among the samples
    prompt: Prompt
    answer: list[int]  # ids, with the one that ends it


def questions_about(
    dataset: Dataset,
    samples: Sequence[Sample],
    recipe: Recipe,
    config: ModelConfig,
    tokenizer: Tokenizer,
    pictures: int = 1,
) -> list[Asked]:
    """In the dataset's order, each about a picture or a clip of so many; InputError when there is none."""
    row_of = {sample.id: row for row, sample in enumerate(samples)}
    found = [
        Asked(
            question.kind,
            row_of[question.sample],
            read_prompt(config, tokenizer, question.question, pictures, clip=pictures > 1),
            reply_ids(config, tokenizer, question.answer),
        )
        for question in dataset.questions
        if question.sample in row_of
    ]
    if not found:
        raise InputError(f"{recipe.data}: no question is about the pictures of splits {list(recipe.splits)}")
    return found


# What the language model says about things before it learns to read: kept in training, so that it goes on talking.
#
# An adapter taught on short answers alone answers everything shortly.  A share of each batch is therefore text without
# a picture, with the model's own earlier reply as the target (self-distillation; sequence level, arXiv:1606.07947).
# Axes: b prompts, s tokens.

TEMPLATES = (
    "What is {}?",
    "Write one sentence about {}.",
    "Tell me a short story with {} in it.",
    "Give me three facts about {}.",
    "Where would I find {}?",
    "Why do people talk about {}?",
    "Explain {} to a child.",
    "Make a list of words that go with {}.",
)
BATCH = 64

Reply = tuple[Prompt, list[int]]  # a message's prompt, and the ids said to it


def prompts_about(things: Sequence[str], count: int) -> list[str]:
    """`count` messages: every template in turn, over things spread evenly through the list."""
    stride = max(1, len(things) // max(count, 1))
    return [TEMPLATES[i % len(TEMPLATES)].format(things[i * stride % len(things)]) for i in range(count)]


@torch.no_grad()
def own_replies(model: Unified, messages: Sequence[str], new_tokens: int) -> list[Reply]:
    """The transformer's greedy reply to each message, at most `new_tokens` ids with the one that ends it."""
    prompts = [read_prompt(model.config, model.tokenizer, message, pictures=0) for message in messages]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths run together
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        said = _greedy(model, [prompts[row] for row in rows], new_tokens)
        replies |= dict(zip(rows, said, strict=True))
    return [(prompt, replies[row]) for row, prompt in enumerate(prompts)]


def _greedy(model: Unified, prompts: Sequence[Prompt], new_tokens: int) -> list[list[int]]:
    stops = set(stop_ids(model.config, model.tokenizer))
    decode = BatchDecode(model, prompts, new_tokens)
    said: list[list[int]] = [[] for _ in prompts]
    tokens: Tensor | None = None
    for _ in range(new_tokens):
        tokens = model.transformer.logits(decode.step(tokens)).argmax(-1)  # (b)
        for reply, token in zip(said, tokens.tolist(), strict=True):
            if not reply or reply[-1] not in stops:
                reply.append(token)
        if all(reply[-1] in stops for reply in said):
            break
    return said
