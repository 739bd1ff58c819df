"""Questions about pictures of a style the model never saw, scored beside what a blind answerer would get.

    label        "What is this?", free text: word for word, and counting any tag of the sample as right too
    the rest     group, colour, yes/no, count, relation, existence: made so that guessing does not pay

The baseline is the dataset's own: the commonest answer of the kind and split among the choices on offer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemm import progress
from edgemm.data.format import Dataset, Question, Sample
from edgemm.errors import InputError
from edgemm.evaluate.answers import (
    chosen,
    circular_prompts,
    has_choices,
    is_any_of,
    is_right,
    is_yes_no,
    said_yes,
    vqa_accuracy,
)
from edgemm.evaluate.metrics import Interval, Share, YesNoScores, ratio_of_means, share, yes_no_scores
from edgemm.evaluate.samples import real_pictures, some
from edgemm.evaluate.subject import Subject

__all__ = ["KindScore", "ReadPart", "ReadResult", "default_split", "run_read_suite"]

PREFERRED_SPLITS = ("held-out-style", "held-out-pair", "held-out-family", "test", "train")  # the strictest first


@dataclass(frozen=True)
class KindScore:
    accuracy: Share
    baseline: float  # of the majority answer, over all questions of the kind and split


@dataclass(frozen=True)
class ReadPart:
    """The scores of one split."""

    pictures: int
    kinds: dict[str, KindScore]
    any_tag: Share | None  # of the label questions, with tags accepted
    balanced: KindScore | None  # every question but the labels, together
    yes_no: YesNoScores | None  # over all questions that have yes or no for an answer
    vqa: Interval  # VQAv2's accuracy over everything (answers.py)
    circular: dict[str, Share] | None  # of choices, right in every order (answers.py); None where it was not asked


@dataclass(frozen=True, eq=False)
class ReadResult:
    parts: dict[str, ReadPart]  # split -> scores
    records: list[dict[str, Any]]  # one a question, with the reply


def default_split(dataset: Dataset) -> str:
    """The strictest test that the dataset holds: another style if it can be, what was trained on if it must."""
    asked = {question.split for question in dataset.questions}
    for split in PREFERRED_SPLITS:
        if split in asked:
            return split
    raise InputError(
        f"{dataset.path}: no question in splits {', '.join(PREFERRED_SPLITS)}; they come from labels, captions and "
        "`questions` of pictures"
    )


def run_read_suite(
    subject: Subject, dataset: Dataset, splits: Sequence[str], limit: int | None, circular: bool = False
) -> ReadResult:
    """At most `limit` questions of each kind and split; `circular` asks choices again in every order."""
    parts, records = {}, []
    for split in splits:
        questions = [question for question in dataset.questions if question.split == split]
        if not questions:
            raise InputError(f"{dataset.path}: no question in split {split!r}; try {default_split(dataset)!r}")
        kinds = sorted({question.kind for question in questions})
        asked = [
            q for kind in kinds for q in some((q for q in questions if q.kind == kind), limit, "sample", "question")
        ]
        replies = _ask(subject, dataset, asked)
        always = _ask_around(subject, dataset, asked) if circular else [None] * len(asked)
        parts[split] = _scores(dataset, asked, replies, always)
        records += [_record(question, reply, every) for question, reply, every in zip(asked, replies, always)]
    return ReadResult(parts, records)


def _ask(subject: Subject, dataset: Dataset, questions: Sequence[Question]) -> list[str]:
    samples = _by_id(dataset)
    replies = []
    for question in progress.track(questions, len(questions), "asking", "questions"):
        picture = real_pictures(dataset, [samples[question.sample]], dataset.size)[0]
        replies.append(subject.read(picture, question.question))
    return replies


def _ask_around(subject: Subject, dataset: Dataset, questions: Sequence[Question]) -> list[bool | None]:
    """Whether the answer was chosen in every order of the options; None for what has no options."""
    samples = _by_id(dataset)
    always: list[bool | None] = []
    for question in progress.track(questions, len(questions), "asking in every order", "questions"):
        if not has_choices(question):
            always.append(None)
            continue
        picture = real_pictures(dataset, [samples[question.sample]], dataset.size)[0]
        prompts = circular_prompts(question)
        always.append(all(chosen(subject.read(picture, text), options) == question.answer for text, options in prompts))
    return always


def _scores(
    dataset: Dataset, questions: Sequence[Question], replies: Sequence[str], always: Sequence[bool | None]
) -> ReadPart:
    samples = _by_id(dataset)
    asked = list(zip(questions, replies))
    labels = [(question, reply) for question, reply in asked if question.kind == "label"]
    others = [(question, reply) for question, reply in asked if question.kind != "label"]
    agreed = [vqa_accuracy(reply, [question.answer]) for question, reply in asked]
    turned: dict[str, list[bool]] = {}
    for question, every in zip(questions, always):
        if every is not None:
            turned.setdefault(question.kind, []).append(every)
    yes_no = [(question.answer == "yes", said_yes(reply)) for question, reply in others if is_yes_no(question)]
    return ReadPart(
        pictures=len({question.sample for question in questions}),
        kinds={
            kind: _kind_score(dataset, [pair for pair in asked if pair[0].kind == kind])
            for kind in sorted({question.kind for question in questions}, key=lambda kind: (kind != "label", kind))
        },
        any_tag=share([_is_any_word(samples[q.sample], q, reply) for q, reply in labels]) if labels else None,
        balanced=_kind_score(dataset, others) if others else None,
        yes_no=yes_no_scores(*zip(*yes_no)) if yes_no else None,
        vqa=ratio_of_means(agreed, [1.0] * len(agreed)),
        circular={kind: share(right) for kind, right in sorted(turned.items())} or None,
    )


def _kind_score(dataset: Dataset, asked: Sequence[tuple[Question, str]]) -> KindScore:
    blind = [_baseline(dataset, question) for question, _ in asked]
    return KindScore(share([is_right(*pair) for pair in asked]), sum(blind) / len(blind))


def _baseline(dataset: Dataset, question: Question) -> float:
    stored = dataset.baselines.get(question.kind, {}).get(question.split, {})
    return float(stored.get("accuracy", math.nan))


def _is_any_word(sample: Sample, question: Question, reply: str) -> bool:
    return is_any_of((question.answer, sample.label, *sample.tags), reply)


def _by_id(dataset: Dataset) -> dict[str, Sample]:
    return {sample.id: sample for sample in dataset.samples}


def _record(question: Question, reply: str, circular: bool | None) -> dict[str, Any]:
    return {
        "sample": question.sample,
        "split": question.split,
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "reply": reply,
        "right": is_right(question, reply),
        "circular": circular,
    }
