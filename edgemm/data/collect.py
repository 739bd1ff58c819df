"""Anybody's pictures and words as a dataset that both tasks train on.

One entry gives a sample (its captions are drawing prompts) and questions (reading): a quadruplet of prompt, picture,
question and answer feeds both.  Fields of an entry, all but the words optional:

    text, caption, captions, prompt   what is in the picture: drawing prompts, and the answer to "Describe the picture."
    label                             its name: the answer to "What is this?"; a drawing prompt when there is no other
    question, answer, choices         a question of its own; or `questions`, a list of such objects, each with a `kind`
    style, group, family, tags        as in format.py
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bundle.picture import fit_square
from edgemm.data.entries import Entry, is_listed, read_entries
from edgemm.data.format import SPLITS, Question, Sample
from edgemm.data.writer import DatasetWriter, new_folder, stable_fraction
from edgemm.errors import InputError

__all__ = ["build_pictures", "imported", "questions_of", "sample_of"]

CAPTION_FIELDS = ("text", "caption", "captions", "prompt")
LAYOUTS = (
    "no pictures in it; expected pictures with metadata.jsonl or metadata.csv, with a .txt of the same name each, in "
    "folders named like their labels, or .tar shards"
)
LONGEST = 1000  # characters of a caption, a question or an answer


def build_pictures(
    folder: Path, size: int, source: Path, limit: int | None = None, skip_broken: bool = False
) -> tuple[int, list[str]]:
    """Write every entry of `source` into `folder`, its picture fitted into a square; or at most `limit`: of a folder
    by lot, the same at every run, and of shards and `datasets`, which would have to be read to their end, the first.

    Returns how many there are, and of each broken picture that was left out, what is wrong with it; without
    `skip_broken` the first of them is an InputError.
    """
    writer, questions, broken = DatasetWriter(folder, "pictures", size), [], []
    for entry in progress.track(_chosen(source, limit), limit, "collecting", "pictures"):
        number = len(writer.samples)
        if number == limit:
            break
        sample = sample_of(number, entry)
        try:
            picture = fit_square(entry.picture(), size)
        except InputError as error:
            if not skip_broken:
                raise InputError(f"{error}; --skip-broken leaves such pictures out") from error
            broken.append(str(error))
            continue
        questions += questions_of(sample, entry)
        writer.add(sample, picture)
    if not writer.samples:
        what = f"none of its {len(broken)} pictures can be read; the first: {broken[0]}" if broken else LAYOUTS
        raise InputError(f"{source}: {what}")
    name = os.fsencode(source.resolve().name).decode(errors="replace")
    writer.finish(questions, [], f"The pictures come from {name} and keep the terms they had there.")
    return len(writer.samples), broken


def _chosen(source: Path, limit: int | None) -> Iterator[Entry]:
    """All, in the order in which they are taken until there are `limit`."""
    if limit is None:
        return read_entries(source)
    if is_listed(source):
        lots = ((stable_fraction("pictures", str(place)), entry) for place, entry in enumerate(read_entries(source)))
        return (entry for _, entry in sorted(lots, key=lambda pair: pair[0]))
    progress.line(f"{source}: the first {limit} in its order, which may be all of a kind; of a folder they are by lot")
    return read_entries(source)


def imported(source: Path, size: int, cache: Path, skip_broken: bool = False) -> Path:
    """The dataset folder below `cache` that holds the pictures of `source` as they are now; made when it is not there.

    A file that is added, changed or taken away makes another one.
    """
    files = sorted(path for path in (source.rglob("*") if source.is_dir() else [source]) if path.is_file())
    facts = [(os.fspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr([os.path.abspath(source), size, skip_broken, facts]).encode()).hexdigest()
    name = re.sub(r"\W+", "-", source.resolve().stem, flags=re.ASCII)
    goal = cache / "datasets" / f"{name}-{size}-{key[:12]}"
    if not (goal / "dataset.json").is_file():
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{goal.parent}: {error.strerror}; name another cache in EDGEMM_CACHE") from error
        with new_folder(goal, force=True) as folder:
            count, broken = build_pictures(folder, size, source, skip_broken=skip_broken)
        left_out = f"; {len(broken)} broken ones left out, the first: {broken[0]}" if broken else ""
        progress.line(f"{source}: {count} pictures{left_out}")
    progress.line(f"{source} as a dataset: {goal}; look at {goal / 'contact_sheet.png'}")
    return goal


def sample_of(number: int, entry: Entry) -> Sample:
    fields = entry.fields
    captions = [text for name in CAPTION_FIELDS for text in _texts(fields.get(name), f"{entry.where}: {name}")]
    label = " ".join(_texts(fields.get("label"), f"{entry.where}: label")) or min(captions, key=len, default="")
    if not label:
        raise InputError(f"{entry.where}: no words; expected one of: {', '.join(CAPTION_FIELDS)}, label")
    if entry.split not in SPLITS:
        raise InputError(f"{entry.where}: split is {entry.split!r}, expected one of: {', '.join(SPLITS)}")
    _check_length(label, f"{entry.where}: label")
    style = "-".join(_word(entry, "style", "pictures").split()).replace("/", "-")
    style = style if style.strip(".") else "pictures"  # it names a folder, which ".." is not
    name = f"{style}/{number:08d}"
    return Sample(
        id=name,
        image=f"images/{style}/{number // 1000:05d}/{number:08d}.png",
        style=style,
        label=label,
        tags=tuple(_texts(fields.get("tags"), f"{entry.where}: tags")),
        family=_word(entry, "family", label),
        group=_word(entry, "group", "pictures"),
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
    asked = fields.get("questions") or []
    if not isinstance(asked, list):
        raise InputError(f"{entry.where}: questions is a {type(asked).__name__}, expected a list")
    own = [fields] if fields.get("question") else []
    return made + [_question(sample, one, entry.where) for one in [*own, *asked]]


def _question(sample: Sample, one: Any, where: str) -> Question:
    if not isinstance(one, dict):
        raise InputError(f"{where}: a question is a {type(one).__name__}, expected an object")
    text, answer = (" ".join(_texts(one.get(key), f"{where}: {key}")) for key in ("question", "answer"))
    if not text or not answer:
        raise InputError(f"{where}: a question needs question and answer, found {sorted(map(str, one))}")
    choices = tuple(_texts(one.get("choices"), f"{where}: choices")) or None
    try:
        kind = " ".join(_texts(one.get("kind"), f"{where}: kind")) or "question"
        return Question(sample.id, kind, text, answer, choices, sample.split)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _word(entry: Entry, name: str, otherwise: str) -> str:
    """One field's text; null and nothing are as if it were not there."""
    where = f"{entry.where}: {name}"
    text = " ".join(_texts(entry.fields.get(name), where)) or otherwise
    _check_length(text, where)
    return text


def _check_length(text: str, where: str) -> None:
    if len(text) > LONGEST:
        raise InputError(f"{where} has {len(text)} characters, at most {LONGEST} are read")


def _texts(value: Any, where: str) -> Iterable[str]:
    """A string, or a list of them, on one line each; nothing for nothing."""
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    texts = []
    for one in values:
        if not isinstance(one, (str, int)) or isinstance(one, bool):
            raise InputError(f"{where} is a {type(one).__name__}, expected text")
        text = " ".join(str(one).split())
        if "\0" in text:
            raise InputError(f"{where} holds a NUL character, expected text")
        _check_length(text, where)
        texts += [text] if text else []
    return texts
