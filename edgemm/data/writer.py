"""Writing a dataset so that it is either whole or not there.

Ctrl-C, a full disk or a bug leave nothing behind (whole_folder.py).  What the files mean is in format.py; which terms
the pictures carry is in notice.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.data.baselines import majority_baselines
from edgemm.data.contact_sheet import contact_sheet
from edgemm.data.format import SCHEMA_VERSION, SPLITS, Edit, Question, Sample, dump_line
from edgemm.data.notice import OURS, write_notice
from edgemm.data.sources import Package
from edgemm.errors import EdgemmError, ResourceError, UsageError
from edgemm.whole_folder import is_disk_full, whole_folder

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DatasetWriter", "new_folder"]


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
