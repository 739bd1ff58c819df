"""A dataset's questions about some of its pictures, as prompts and the ids of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemm.config import ModelConfig
from edgemm.data.format import Dataset, Sample
from edgemm.errors import InputError
from edgemm.model.prompts import Encode, TextPrompt, read_prompt, reply_ids
from edgemm.train.recipe import Recipe

__all__ = ["Asked", "questions_about"]


@dataclass(frozen=True)
class Asked:
    kind: str
    row: int  # of the picture, among the samples
    prompt: TextPrompt
    answer: list[int]  # ids, with the one that ends it


def questions_about(
    dataset: Dataset, samples: Sequence[Sample], recipe: Recipe, config: ModelConfig, encode: Encode
) -> list[Asked]:
    """In the dataset's order; InputError when there is none."""
    row_of = {sample.id: row for row, sample in enumerate(samples)}
    found = [
        Asked(
            question.kind,
            row_of[question.sample],
            read_prompt(config, encode, question.question, 1),
            reply_ids(config, encode, question.answer),
        )
        for question in dataset.questions
        if question.sample in row_of
    ]
    if not found:
        raise InputError(f"{recipe.data}: no question is about the pictures of splits {list(recipe.splits)}")
    return found
