"""Writing a dataset so that it is either whole or not there.

Ctrl-C, a full disk or a bug leave nothing behind (files.py).  What the files mean is in format.py; which terms
the pictures carry is in writer.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.bundle.files import is_disk_full
from edgemm.bundle.writer import check_replaceable, whole_folder
from edgemm.data.format import SCHEMA_VERSION, SPLITS, Edit, Question, Sample, dump_line
from edgemm.data.sources import Package
from edgemm.errors import InputError, ResourceError, UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DatasetWriter",
    "HELD_OUT_FAMILY_SHARE",
    "HELD_OUT_PAIR_SHARE",
    "HELD_OUT_STYLE",
    "OURS",
    "SCORER_STYLE",
    "assign_splits",
    "contact_sheet",
    "majority_baselines",
    "new_folder",
    "stable_fraction",
    "write_notice",
]

OURS = "The pictures were drawn by edgemm itself and carry edgemm's licence."


class DatasetWriter:
    """Takes pictures as they come, then writes the tables, the sheet and the licences."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.folder, self.kind, self.size = folder, kind, size
        self.samples: list[Sample] = []
        self.edits: list[Edit] = []
        self._made: set[Path] = set()

    def add(self, sample: Sample, picture: Image.Image) -> None:
        height = self.size * sample.frames
        if picture.mode != "RGB" or picture.size != (self.size, height):
            raise ValueError(f"{sample.id} is {picture.mode} {picture.size}, not RGB {self.size} x {height}")
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
def new_folder(goal: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """A temporary folder that becomes `goal` when the block ends well, and vanishes when it does not.

    With `force` it replaces a dataset, and nothing else: neither other folders nor the one that `source` lies in.
    """

    def may_replace(there: Path) -> None:
        if not there.is_dir():
            raise UsageError(f"{goal} is a file; --output wants a folder")
        if any(there.iterdir()) and not force:
            raise UsageError(f"{goal} is not empty; give another --output, or --force to replace it")
        check_replaceable(
            there, lambda folder: (folder / "dataset.json").is_file(), "dataset", [source] if source else []
        )

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
        raise InputError(f"{error.filename or goal}: {error.strerror or error}; {goal} was not made") from error


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
        lines.append(f"  by {package.author}; {package.licence}; see LICENSES/{package.notice_file}")
        text = (TEXTS / package.licence_file).read_text(encoding="utf-8").replace("{author}", package.author)
        (folder / "LICENSES").mkdir(exist_ok=True)
        (folder / "LICENSES" / package.notice_file).write_text(text, encoding="utf-8")
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
            sheet.paste(picture.crop((0, 0, size, size)), (GAP + index % columns * step, GAP + index // columns * step))
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


# Who is trained on and who is kept back, decided by a stable hash of the family: adding a style moves nobody.
#
#     held-out-family   families whose hash falls in the first 8 %, in every style; and whatever no training style draws
#     held-out-pair     for 10 % of the other families that both fluent and noto draw, noto's pictures: the label is
#                       known from fluent, the style from other labels, the pair is new
#     held-out-style    noto-v1's pictures of families that are trained on
#     scorer            all of twemoji: it trains an independent judge, never the model
#     train             the rest
#
# It knows names, never pictures.

HELD_OUT_FAMILY_SHARE = 0.08
HELD_OUT_PAIR_SHARE = 0.10
HELD_OUT_STYLE = "noto-v1"
SCORER_STYLE = "twemoji"
PAIR_KEEPS, PAIR_WITHHOLDS = "fluent", "noto"


def stable_fraction(*names: str) -> float:
    """A number in [0, 1) that depends on the names alone, on every machine."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(pictures: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """(style, hexcode) -> split, for (style, hexcode, family) triples."""
    pictures = list(pictures)
    drawn: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for style, hexcode, family in pictures:
        drawn[family][style].add(hexcode)
    withheld = {family for family in drawn if stable_fraction("family", family) < HELD_OUT_FAMILY_SHARE}
    pairs = {family for family in set(drawn) - withheld if _is_pair(family, drawn[family])}

    def split_of(style: str, family: str) -> str:
        if style == SCORER_STYLE:
            return "scorer"
        trained = any(other not in (SCORER_STYLE, HELD_OUT_STYLE) for other in drawn[family])
        if family in withheld or not trained:
            return "held-out-family"
        if style == HELD_OUT_STYLE:
            return "held-out-style"
        return "held-out-pair" if style == PAIR_WITHHOLDS and family in pairs else "train"

    return {(style, hexcode): split_of(style, family) for style, hexcode, family in pictures}


def _is_pair(family: str, styles: dict[str, set[str]]) -> bool:
    kept, withheld = styles.get(PAIR_KEEPS, set()), styles.get(PAIR_WITHHOLDS, set())
    complete = bool(withheld) and withheld <= kept  # every withheld label must be trained in the other style
    return complete and stable_fraction("pair", family) < HELD_OUT_PAIR_SHARE
