"""Questions about pictures of a style the model never saw, scored beside what a blind answerer would get.

    label        "What is this?", free text: word for word, and counting any tag of the sample as right too
    the rest     group, colour, yes/no, count, relation, existence: made so that guessing does not pay

The baseline is the dataset's own: the commonest answer of the kind and split among the choices on offer.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm import progress
from edgemm.data.format import Dataset, Question, Sample
from edgemm.errors import InputError
from edgemm.evaluate.metrics import Interval, Share, YesNoScores, ratio_of_means, share, yes_no_scores
from edgemm.evaluate.subject import Subject, shown, some

__all__ = [
    "KindScore",
    "ReadPart",
    "ReadResult",
    "chosen",
    "circular_prompts",
    "default_split",
    "has_choices",
    "is_any_of",
    "is_right",
    "is_yes_no",
    "normalised",
    "run_read_suite",
    "said_yes",
    "vqa_accuracy",
    "vqa_normalised",
]

PREFERRED_SPLITS = (  # the strictest first
    "held-out-style",
    "held-out-pair",
    "held-out-family",
    "test",
    "held-out-picture",
    "train",
)


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
    vqa: Interval  # VQAv2's accuracy over everything
    circular: dict[str, Share] | None  # of choices, right in every order; None where it was not asked


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
    asked_about = {question.split for question in dataset.questions}
    if unknown := [split for split in splits if split not in asked_about]:
        raise InputError(f"{dataset.path}: no question in split {unknown[0]!r}; try {default_split(dataset)!r}")
    for split in dict.fromkeys(splits):
        questions = [question for question in dataset.questions if question.split == split]
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
    asked = ((question.sample, question.question) for question in questions)
    return list(progress.track(_replies(subject, dataset, asked), len(questions), "asking", "questions"))


def _replies(subject: Subject, dataset: Dataset, asked: Iterable[tuple[str, str]]) -> Iterator[str]:
    """To questions about samples, by their names."""
    samples = dataset.by_id
    return subject.read((shown(dataset, samples[sample]), text) for sample, text in asked)


def _ask_around(subject: Subject, dataset: Dataset, questions: Sequence[Question]) -> list[bool | None]:
    """Whether the answer was chosen in every order of the options; None for what has no options.

    An order is asked only of those that were right in all before it."""
    turned = [circular_prompts(question) if has_choices(question) else [] for question in questions]
    always: list[bool | None] = [True if prompts else None for prompts in turned]
    most = max(map(len, turned), default=0)
    with progress.bar("asking in every order", sum(map(len, turned)), "questions") as bar:
        for turn in range(most):
            left = [place for place, prompts in enumerate(turned) if always[place] and turn < len(prompts)]
            asked = ((questions[place].sample, turned[place][turn][0]) for place in left)
            for place, reply in zip(left, _replies(subject, dataset, asked), strict=True):
                always[place] = chosen(reply, turned[place][turn][1]) == questions[place].answer
                bar.update(1 if always[place] else len(turned[place]) - turn)
    return always


def _scores(
    dataset: Dataset, questions: Sequence[Question], replies: Sequence[str], always: Sequence[bool | None]
) -> ReadPart:
    samples = dataset.by_id
    asked = list(zip(questions, replies))
    labels = [(question, reply) for question, reply in asked if question.kind == "label"]
    others = [(question, reply) for question, reply in asked if question.kind != "label"]
    agreed = [vqa_accuracy(reply, [question.answer]) for question, reply in asked]
    turned: dict[str, list[bool]] = {}
    for question, every in zip(questions, always):
        if every is not None:
            turned.setdefault(question.kind, []).append(every)
    yes_no = [(question.answer.lower() == "yes", said_yes(reply)) for question, reply in others if is_yes_no(question)]
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


# When a reply is right.
#
# Both sides are lower-cased; accents, punctuation and a leading "a", "an" or "the" go; spaces are evened: "A red
# apple." is "red apple".  A label is right when it is the sample's label, word for word; the second, kinder count
# accepts any of its tags too.  Every other kind has one right answer, that of the question.  Where it is yes or no, the
# first word of the reply counts (as in POPE, arXiv:2305.10355), so "Yes, it is." is a yes.

ARTICLES = ("a", "an", "the")
ACCENTS = ("\u0300", "\u036f")  # those of Latin letters, Greek and Cyrillic; other scripts' marks are vowels


def normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower())
    kept = (_plain(character) for character in plain if not ACCENTS[0] <= character <= ACCENTS[1])
    words = "".join(kept).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ARTICLES else words)


def is_yes_no(question: Question) -> bool:
    return question.choices is not None and {choice.lower() for choice in question.choices} == {"yes", "no"}


def is_right(question: Question, reply: str) -> bool:
    if is_yes_no(question):
        return said_yes(reply) is (question.answer.lower() == "yes")
    return _evened(reply) == _evened(question.answer)


def is_any_of(accepted: Iterable[str], reply: str) -> bool:
    return _evened(reply) in {_evened(word) for word in accepted}


def _evened(text: str) -> str:
    """Of signs alone, such as "+", nothing is left, and "-" would be as right."""
    return normalised(text) or " ".join(text.lower().split())


def said_yes(reply: str) -> bool | None:
    """None where the reply begins with neither yes nor no."""
    first = normalised(reply).partition(" ")[0]
    return {"yes": True, "no": False}.get(first)


def _plain(character: str) -> str:
    """Letters, their marks and digits stay, apostrophes vanish ("can't" is "cant"), the rest parts words."""
    is_mark = unicodedata.category(character) in ("Mn", "Mc") and not "\ufe00" <= character <= "\ufe0f"  # of emoji
    if character.isalnum() or is_mark:
        return character
    return "" if character in "'’" else " "


# Multiple choice asked once for every rotation of the options (CircularEval of MMBench, arXiv:2307.06281).
#
# A model that says the first option to anything is right a quarter of the time in one order and never in all of them.
# The reply may be an option's letter or its words.  It knows questions and replies, never models.

LETTERS = "ABCDEFGH"


def has_choices(question: Question) -> bool:
    """Yes-or-no questions have a score of their own."""
    return question.choices is not None and 2 < len(question.choices) <= len(LETTERS) and not is_yes_no(question)


def circular_prompts(question: Question) -> list[tuple[str, tuple[str, ...]]]:
    """(message, options in its order), one for each rotation."""
    choices = question.choices or ()
    rotations = [choices[start:] + choices[:start] for start in range(len(choices))]
    return [(_message(question.question, options), options) for options in rotations]


def _message(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([question, *lines, "Answer with one of these."])


def chosen(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names, by letter or by words; None where it is neither or more than one."""
    said = normalised(reply)
    exact = [option for option in options if normalised(option) == said]
    if exact:
        return exact[0]
    head, _, rest = reply.strip().partition(" ")
    letter = head.strip("().:").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        option = options[LETTERS.index(letter)]
        if not rest or normalised(rest) == normalised(option):
            return option
    inside = [option for option in options if f" {normalised(option)} " in f" {said} "]
    return inside[0] if len(inside) == 1 else None


# VQAv2's accuracy (arXiv:1612.00837): how many of ten people agree, capped at three; the mean over who is left out.
#
# Its normalisation is kinder than is_right's: number words become digits, every article goes.  Pure functions.

PEOPLE = 10
ENOUGH = 3  # people who agree
VQA_ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}


def vqa_normalised(text: str) -> str:
    """Lower case, no punctuation but a number's own point, digits for number words, no articles."""
    plain = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("\n", " ").replace("'", ""))
    plain = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", plain)
    words = re.sub(r"[^\w.]+", " ", plain).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in VQA_ARTICLES)


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """In [0, 1]. One answer stands for ten people who all gave it; else there must be two or more."""
    said = vqa_normalised(reply)
    given = [vqa_normalised(answer) for answer in (answers if len(answers) > 1 else list(answers) * PEOPLE)]
    agree = [answer == said for answer in given]
    left = [sum(agree) - own for own in agree]  # how many of the others agree, whoever is left out
    return sum(min(1.0, count / ENOUGH) for count in left) / len(left)
