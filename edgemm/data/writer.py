"""Writing a dataset so that it is either whole or not there.

Ctrl-C, a full disk or a bug leave nothing behind (files.py).  What the files mean is in format.py; which terms
the pictures carry is in writer.py.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.bundle.files import is_disk_full
from edgemm.bundle.writer import whole_folder
from edgemm.data.format import SCHEMA_VERSION, SPLITS, Edit, Question, Sample, dump_line
from edgemm.data.sources import Package
from edgemm.data.splits import stable_fraction
from edgemm.errors import EdgemmError, ResourceError, UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DatasetWriter", "new_folder", "majority_baselines", "OURS", "write_notice", "contact_sheet"]
OURS = "The pictures were drawn by edgemm itself and carry edgemm's licence."


class DatasetWriter:
    """Takes pictures as they come, then writes the tables, the sheet and the licences."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.folder, self.kind, self.size = folder, kind, size
        self.samples: list[Sample] = []
        self.edits: list[Edit] = []
        self._made: set[Path] = set()

    def add(self, sample: Sample, picture: Image.Image) -> None:
        if picture.mode != "RGB" or picture.size != (self.size, self.size):
            raise ValueError(f"{sample.id} is {picture.mode} {picture.size}, not RGB {self.size} x {self.size}")
        file = self.folder / sample.image
        if file.parent not in self._made:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(file.parent)
        picture.save(file, optimize=True)
        self.samples.append(sample)

    def finish(self, questions: Sequence[Question], packages: Sequence[Package], terms: str = OURS) -> None:
        counts = Counter(sample.split for sample in self.samples)
        header = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "size": self.size,
            "styles": sorted({sample.style for sample in self.samples}),
            "sources": [vars(package.source) for package in packages],
            "counts": {split: counts[split] for split in SPLITS if counts[split]},
            "questions": dict(Counter(question.kind for question in questions)),
            "baselines": majority_baselines(questions),
        }
        if self.edits:
            header["edits"] = dict(Counter(edit.kind for edit in self.edits))
        (self.folder / "dataset.json").write_text(
            json.dumps(header, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        tables: dict[str, Sequence[Sample | Question | Edit]] = {"samples.jsonl": self.samples}
        tables |= {"questions.jsonl": questions} | ({"edits.jsonl": self.edits} if self.edits else {})
        for name, records in tables.items():
            with (self.folder / name).open("w", encoding="utf-8") as lines:
                lines.writelines(dump_line(record) for record in records)
        sheet = contact_sheet(self.folder, self.samples, self.size).quantize(256)  # for the eye: a third of the bytes
        sheet.save(self.folder / "contact_sheet.png", optimize=True)
        write_notice(self.folder, packages, terms)


@contextmanager
def new_folder(goal: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `goal` when the block ends well, and vanishes when it does not."""

    def may_replace(there: Path) -> None:
        if not there.is_dir():
            raise UsageError(f"{goal} is a file; --output wants a folder")
        if any(there.iterdir()) and not force:
            raise UsageError(f"{goal} is not empty; give another --output, or --force to replace it")

    began = False
    try:
        with whole_folder(goal, may_replace) as folder:
            began = True
            yield folder
    except OSError as error:
        if not began:
            raise UsageError(f"cannot write beside {goal}: {error.strerror}; give another --output") from error
        if is_disk_full(error):
            raise ResourceError(f"the disk of {goal} is full; free some space or give another --output") from error
        raise EdgemmError(f"writing {goal} failed: {error}") from error


# How well one does without looking: the score every reported accuracy stands beside.
#
# The blind answerer knows how often each answer occurs in this kind and split and which choices are offered, and picks
# the commonest on offer.  For open and yes/no questions that is the majority answer.


def majority_baselines(questions: Iterable[Question]) -> dict[str, dict[str, dict[str, Any]]]:
    """kind -> split -> {majority_answer, accuracy, questions}."""
    grouped: defaultdict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        grouped[question.kind, question.split].append(question)
    baselines: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (kind, split), asked in sorted(grouped.items()):
        often = Counter(question.answer for question in asked)
        right = sum(question.answer == _commonest(question.choices or tuple(often), often) for question in asked)
        baselines[kind][split] = {
            "majority_answer": _commonest(tuple(often), often),
            "accuracy": round(right / len(asked), 4),
            "questions": len(asked),
        }
    return dict(baselines)


def _commonest(answers: tuple[str, ...], often: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-often[answer], answer))


# The licences that travel with the pictures.
#
# The icon packages carry no licence file, so the texts are ours to bring.

TEXTS = Path(__file__).with_name("licences")


def write_notice(folder: Path, packages: Sequence[Package], terms: str = OURS) -> None:
    """NOTICE and LICENSES/ for the packages a dataset was made from, or the `terms` of one made from none."""
    lines = ["Pictures and labels in this folder", ""]
    if not packages:
        lines.append(terms)
    for package in packages:
        what = "labels and tags taken" if package.name == "emojibase-data" else "drawings rasterised on white"
        lines.append(f"- {what} from the npm package {package.name} {package.version}")
        lines.append(f"  by {package.author}; {package.licence}; see LICENSES/{package.licence_file}")
        (folder / "LICENSES").mkdir(exist_ok=True)
        shutil.copyfile(TEXTS / package.licence_file, folder / "LICENSES" / package.licence_file)
    (folder / "NOTICE").write_text("\n".join(lines) + "\n", encoding="utf-8")


# One picture that shows what is in a dataset: the same emoji a row, a style a column; or simply the first scenes.

COLUMNS, ROWS, GAP = 16, 12, 4


def contact_sheet(folder: Path, samples: Sequence[Sample], size: int) -> Image.Image:
    """Up to 16 x 12 pictures; a drawing's styles stand side by side."""
    from PIL import Image

    shown, columns = _chosen(samples)
    step, rows = size + GAP, max(1, -(-len(shown) // columns))
    sheet = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "#dddddd")
    for index, sample in enumerate(shown):
        with Image.open(folder / sample.image) as picture:
            sheet.paste(picture, (GAP + index % columns * step, GAP + index // columns * step))
    return sheet


def _chosen(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """What to show, and how many in a row so that nothing is torn apart."""
    by_code: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_code[sample.hexcode or sample.id].append(sample)
    widest = min(max(map(len, by_code.values()), default=1), COLUMNS)
    # The emoji that most styles draw, in an order that is random but the same every time.
    order = sorted(by_code, key=lambda code: (-len(by_code[code]), stable_fraction("sheet", code)))
    columns = COLUMNS // widest * widest
    return [sample for code in order for sample in by_code[code]][: columns * ROWS], columns
