"""Anybody's pictures and words as a dataset that both tasks train on.

One entry gives a sample (its captions are drawing prompts) and questions (reading): a quadruplet of prompt, picture,
question and answer feeds both.  Fields of an entry, all but the words optional:

    text, caption, captions, prompt   what is in the picture: drawing prompts, and the answer to "Describe the picture."
    label                             its name: the answer to "What is this?"; a drawing prompt when there is no other
    question, answer, choices         a question of its own; or `questions`, a list of such objects, each with a `kind`
    style, group, family, tags        as in format.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bundle.picture import fit_square
from edgemm.data.entries import Entry, read_entries
from edgemm.data.format import SPLITS, Question, Sample
from edgemm.data.writer import DatasetWriter
from edgemm.errors import InputError

__all__ = ["build_pictures", "questions_of", "sample_of"]

CAPTION_FIELDS = ("text", "caption", "captions", "prompt")
LONGEST = 1000  # characters of a caption, a question or an answer


def build_pictures(folder: Path, size: int, source: Path, limit: int | None = None) -> int:
    """Write every entry of `source` (at most `limit`) into `folder`, its picture fitted into a square."""
    writer, questions = DatasetWriter(folder, "pictures", size), []
    for number, entry in progress.track(enumerate(read_entries(source)), limit, "collecting", "pictures"):
        if number == limit:
            break
        sample = sample_of(number, entry)
        questions += questions_of(sample, entry)
        writer.add(sample, fit_square(entry.picture, size))
    if not writer.samples:
        raise InputError(f"{source}: no pictures in it")
    writer.finish(questions, [], f"The pictures come from {source.name} and keep the terms they had there.")
    return len(writer.samples)


def sample_of(number: int, entry: Entry) -> Sample:
    fields = entry.fields
    captions = [text for name in CAPTION_FIELDS for text in _texts(fields.get(name), f"{entry.where}: {name}")]
    label = " ".join(_texts(fields.get("label"), f"{entry.where}: label")) or min(captions, key=len, default="")
    if not label:
        raise InputError(f"{entry.where}: no words; expected one of: {', '.join(CAPTION_FIELDS)}, label")
    if entry.split not in SPLITS:
        raise InputError(f"{entry.where}: split is {entry.split!r}, expected one of: {', '.join(SPLITS)}")
    style = "-".join(str(fields.get("style", "pictures")).split()).replace("/", "-") or "pictures"
    name = f"{style}/{number:08d}"
    return Sample(
        id=name,
        image=f"images/{style}/{number // 1000:05d}/{number:08d}.png",
        style=style,
        label=label,
        tags=tuple(_texts(fields.get("tags"), f"{entry.where}: tags")),
        family=str(fields.get("family", label)),
        group=str(fields.get("group", "pictures")),
        subgroup="",
        hexcode="",
        split=entry.split,
        captions=tuple(dict.fromkeys(sorted(captions, key=len))) or (label,),
    )


def questions_of(sample: Sample, entry: Entry) -> list[Question]:
    """What was asked about the picture, and what its words answer."""
    fields, made = entry.fields, []
    if fields.get("label"):
        made.append(Question(sample.id, "label", "What is this?", sample.label, None, sample.split))
    if any(fields.get(name) for name in CAPTION_FIELDS):
        made.append(Question(sample.id, "caption", "Describe the picture.", sample.captions[-1], None, sample.split))
    asked = fields.get("questions") or ([fields] if fields.get("question") else [])
    if not isinstance(asked, list):
        raise InputError(f"{entry.where}: questions is a {type(asked).__name__}, expected a list")
    return made + [_question(sample, one, entry.where) for one in asked]


def _question(sample: Sample, one: Any, where: str) -> Question:
    if not isinstance(one, dict):
        raise InputError(f"{where}: a question is a {type(one).__name__}, expected an object")
    text, answer = (" ".join(_texts(one.get(key), f"{where}: {key}")) for key in ("question", "answer"))
    if not text or not answer:
        raise InputError(f"{where}: a question needs question and answer, found {sorted(map(str, one))}")
    choices = tuple(_texts(one.get("choices"), f"{where}: choices")) or None
    try:
        return Question(sample.id, str(one.get("kind", "question")), text, answer, choices, sample.split)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _texts(value: Any, where: str) -> Iterable[str]:
    """A string, or a list of them, on one line each; nothing for nothing."""
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    texts = []
    for one in values:
        if not isinstance(one, (str, int)) or isinstance(one, bool):
            raise InputError(f"{where} is a {type(one).__name__}, expected text")
        text = " ".join(str(one).split())
        if len(text) > LONGEST:
            raise InputError(f"{where} has {len(text)} characters, at most {LONGEST} are read")
        texts += [text] if text else []
    return texts
