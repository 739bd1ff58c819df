"""What a dataset is on disk, and how to read one.

    DIR/dataset.json       kind, size, sources with sha512 and licence, counts and majority baselines per split
    DIR/samples.jsonl      one picture a line: `Sample`
    DIR/questions.jsonl    one question a line: `Question`
    DIR/edits.jsonl        one edit a line, where there are any: `Edit`
    DIR/images/...         RGB PNGs on white, all `size` x `size`; of clips, frame below frame
    DIR/contact_sheet.png  a look at it
    DIR/LICENSES/ NOTICE   who drew it, and under which terms

Splits: `train`; `held-out-style` (a family seen in training, drawn by a style that is not); `held-out-family` (a family
withheld from every style); `held-out-pair` (a label trained in another style and withheld from this one);
`held-out-colour` (a drawing trained in other colours, in words that were never trained);
`held-out-picture` (what was trained, in pictures that were not); `scorer` (pictures for training an independent judge:
never train on them, never report on them); `test` (what the owner of other pictures withheld).

Writing is in writer.py; what goes in is in emoji.py, icon_pictures.py, compose.py, shapes.py and, for other people's,
collect.py.
Nothing here needs Pillow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from edgemm.bundle.files import read_text, reading
from edgemm.errors import InputError

__all__ = [
    "SCHEMA_VERSION",
    "SPLITS",
    "Dataset",
    "Edit",
    "Question",
    "Sample",
    "Source",
    "check_dataset",
    "dump_line",
    "lines_sha256",
    "read_dataset",
]

SCHEMA_VERSION = 1
LONGEST = 4000  # letters of a text; a model would be shown it whole
SPLITS = (
    "train",
    "held-out-style",
    "held-out-family",
    "held-out-pair",
    "held-out-colour",
    "held-out-picture",
    "scorer",
    "test",
)


@dataclass(frozen=True)
class Sample:
    """One picture and everything that is known about it."""

    id: str  # "fluent/1f436"; unique in the dataset
    image: str  # path below the dataset folder
    style: str  # who drew it: "fluent", "noto", "noto-v1", "twemoji", "ph", "shapes"
    label: str  # lower-case English; for a scene, its shortest caption
    tags: tuple[str, ...]  # other words for it
    family: str  # what stays together in a split: "heart" for every colour of heart
    group: str  # "animals-nature"
    subgroup: str  # "animal-mammal"
    hexcode: str  # Unicode code points without fe0f; empty for a scene
    split: str  # one of SPLITS
    captions: tuple[str, ...]  # true sentences about the picture, shortest first
    scene: dict[str, Any] | None = None  # exact objects, boxes and relations, where they are known

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} of {self.id} is not one of {', '.join(SPLITS)}")

    @property
    def frames(self) -> int:
        """Of a clip, whose file holds frame below frame; 1 of a still picture."""
        return (self.scene or {}).get("frames", 1)


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    sample: str  # Sample.id
    kind: str  # "label", "group", "colour", "yesno", "count", "relation", "existence"
    question: str
    answer: str
    choices: tuple[str, ...] | None  # None when the answer is free text
    split: str  # the sample's

    def __post_init__(self) -> None:
        if self.choices is not None and self.answer not in self.choices:
            raise ValueError(f"answer {self.answer!r} is not among the choices {self.choices} of {self.sample}")


@dataclass(frozen=True)
class Edit:
    """A picture, what to do with it, and how it then looks."""

    source: str  # Sample.id
    instruction: str  # "make the circle blue"
    target: str  # Sample.id
    kind: str  # "style", "colour", "add"
    split: str  # of the two samples' splits the stricter one


@dataclass(frozen=True)
class Source:
    """A package the pictures or the words came from."""

    package: str
    version: str
    sha512: str  # npm's integrity value, base64
    licence: str  # SPDX


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, read and checked."""

    path: Path
    kind: str  # "emoji", "icons", "compose", "shapes", "clips", "edits", "graphs", "pictures"
    size: int  # pixels a side
    styles: tuple[str, ...]
    sources: tuple[Source, ...]
    baselines: dict[str, dict[str, dict[str, Any]]]  # kind -> split -> {majority_answer, accuracy, questions}
    samples: tuple[Sample, ...] = field(repr=False)
    questions: tuple[Question, ...] = field(repr=False)
    edits: tuple[Edit, ...] = field(default=(), repr=False)

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        return {sample.id: sample for sample in self.samples}

    def image_path(self, sample: Sample) -> Path:
        return self.path / sample.image

    def split(self, *names: str) -> list[Sample]:
        """The samples of the named splits, in file order."""
        return [sample for sample in self.samples if sample.split in names]


def dump_line(record: Sample | Question | Edit) -> str:
    """One line of JSON, the same bytes every time."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def read_dataset(path: str | Path) -> Dataset:
    """Read a dataset folder; every line is checked, pictures are not opened."""
    path = Path(path)
    header = _read_header(path)
    with reading(path / "dataset.json", "rebuild it with `edgemm data`"):
        kind, size, styles = str(header["kind"]), int(header["size"]), tuple(header["styles"])
        sources = tuple(Source(**source) for source in header["sources"])
        baselines, counts = dict(header["baselines"]), {str(k): int(v) for k, v in header["counts"].items()}
    samples = tuple(_read_lines(path / "samples.jsonl", Sample))
    questions = tuple(_read_lines(path / "questions.jsonl", Question))
    edits = tuple(_read_lines(path / "edits.jsonl", Edit)) if (path / "edits.jsonl").is_file() else ()
    expected = sum(counts.values())
    if len(samples) != expected:
        raise InputError(
            f"{path} has {len(samples)} samples, dataset.json says {expected}; rebuild it with: edgemm data"
        )
    _check_references(path, samples, questions, edits)
    return Dataset(
        path=path,
        kind=kind,
        size=size,
        styles=styles,
        sources=sources,
        baselines=baselines,
        samples=samples,
        questions=questions,
        edits=edits,
    )


def check_dataset(path: str | Path) -> None:
    """InputError where there is no dataset; its lines are not looked at."""
    _read_header(Path(path))


def lines_sha256(path: str | Path) -> str:
    """SHA-256 of what a dataset's tables say; of a folder that is none, or none any more, that of nothing."""
    digest = hashlib.sha256()
    for name in ("dataset.json", "samples.jsonl", "questions.jsonl", "edits.jsonl"):
        file = Path(path, name)
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InputError(f"no dataset folder at {path}; make one with: edgemm data emoji --output {path}")
    file = path / "dataset.json"
    if not file.is_file():
        raise InputError(
            f"{path} has no dataset.json, so it is no dataset; make one of its pictures: edgemm data pictures --source "
            f"{path} --output {path}-dataset"
        )
    with reading(file, "is not JSON; rebuild it with `edgemm data`"):
        header = json.loads(read_text(file))
    found = header.get("schema_version") if isinstance(header, dict) else None
    if found != SCHEMA_VERSION:
        raise InputError(f"{file} has schema_version {found}, this edgemm reads {SCHEMA_VERSION}; rebuild the dataset")
    return header


Record = TypeVar("Record", Sample, Question, Edit)


def _read_lines(file: Path, record: type[Record]) -> Iterable[Record]:
    if not file.is_file():
        raise InputError(f"{file} is missing; rebuild the dataset with: edgemm data")
    names = {item.name for item in fields(record)}
    with reading(file), file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            with reading(f"{file}, line {number}", ""):
                yield record(**_tuples(json.loads(line), names))


def _tuples(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"expected the fields {', '.join(sorted(names))}")
    return {key: _typed(key, value) for key, value in values.items()}


def _typed(key: str, value: Any) -> Any:
    """As the field has it; bundle/files.py's decode would take ten times as long as the JSON, of a hundred thousand
    lines."""
    if (key == "choices" and value is None) or (key == "scene" and (value is None or isinstance(value, dict))):
        return value
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and len(text) > LONGEST for text in texts):
        raise ValueError(f"{key} has a text of more than {LONGEST} letters")
    if key in ("tags", "captions", "choices") and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return tuple(value)
    if not isinstance(value, str) or key in ("tags", "captions", "choices", "scene"):
        raise ValueError(f"{key} is {value!r:.60}, of another type than it should be")
    if key == "image" and ("\0" in value or value.startswith("/") or ".." in value.split("/")):
        raise ValueError(f"image {value!r} is no path below the dataset's folder")
    return value


def _check_references(
    path: Path, samples: tuple[Sample, ...], questions: tuple[Question, ...], edits: tuple[Edit, ...]
) -> None:
    splits = {sample.id: sample.split for sample in samples}
    if len(splits) != len(samples):
        raise InputError(f"{path / 'samples.jsonl'} names a sample twice; rebuild the dataset with: edgemm data")
    for question in questions:
        if splits.get(question.sample) != question.split:
            raise InputError(
                f"{path / 'questions.jsonl'}: a question of split {question.split!r} is about {question.sample!r}, "
                f"which is {splits.get(question.sample, 'not there')!r}"
            )
    for edit in edits:
        ends = [splits.get(edit.source, "not there"), splits.get(edit.target, "not there")]
        if "not there" in ends or edit.split not in ends:
            raise InputError(
                f"{path / 'edits.jsonl'}: an edit of split {edit.split!r} goes from {edit.source!r} to "
                f"{edit.target!r}, which are {ends[0]!r} and {ends[1]!r}"
            )
