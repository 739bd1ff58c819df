"""What an evaluation says, for a person: as tables on a terminal, and as one page with bars and the sheet of drawings.

It knows the document that a program reads and plain values only, so an eval.json of last week prints the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.files import pillow
from edgemm.evaluate.subject import DRAWN_SPLITS
from edgemm.report import page as kit
from edgemm.report.svg import Bar, bars

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cell", "Section", "as_png", "draw_sheet", "render", "render_page"]

Shares = Sequence[tuple[str, dict[str, Any], float | None]]  # what, its share with an interval, its baseline


@dataclass(frozen=True)
class Part:
    """One table with its title, what is said below it, and the bars that a page draws of it."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    seen: str = ""  # in the bars


def render(document: dict[str, Any]) -> str:
    model = document["model"]
    lines = [f"{model['name']} ({model['kind']} {model['sha256'][:12]}), edgemm {document['edgemm']}"]
    for part in _parts(document):
        lines += ["", part.title, *kit.text_table([part.head, *part.rows]), *part.notes]
    return "\n".join(lines)


def render_page(document: dict[str, Any], sheet: bytes | None = None) -> str:
    """`sheet` is a PNG of the drawings."""
    model, data = document["model"], document["data"]
    title = f"{model['name']}: how it reads and draws"
    about = (
        f"{model['kind']} {str(model['sha256'])[:12]}, edgemm {document['edgemm']} at "
        f"{document['commit'] or 'no commit'}; {data['kind']} at {data['size']} pixels, {str(data['sha256'])[:12]}; "
        f"settings {json.dumps(document['settings'])}"
    )
    blocks = [kit.heading(title, 1), kit.paragraph(about, "sub")]
    for part in _parts(document):
        blocks.append(kit.heading(part.title))
        blocks += [kit.figure("", "", bars(part.bars, part.seen))] if part.bars else []
        blocks += [kit.table(part.head, part.rows), *map(kit.paragraph, part.notes)]
    if sheet:
        blocks += [kit.heading("Drawings"), kit.pictures([sheet], "drawings below real pictures")]
    blocks += [kit.heading("Everything"), kit.preformatted(json.dumps(document, indent=1))]
    return kit.page(title, blocks)


def _parts(document: dict[str, Any]) -> Iterable[Part]:
    for split, part in document.get("read", {}).items():
        yield _reading(f"Reading: {split}, {part['pictures']} pictures", part)
    draw = document.get("draw")
    if draw and "scenes" in draw:
        for split, part in draw["scenes"].items():
            yield _scenes(f"Scenes, judged by {draw['judge']}: {DRAWN_SPLITS.get(split, split)}", part)
    elif draw and isinstance(draw["judge"], str):
        for split, part in draw["parts"].items():
            yield _shapes(f"Drawing, judged exactly: {DRAWN_SPLITS.get(split, split)}", part)
    elif draw:
        tries = document["settings"].get("seeds") or 1
        unit = "pictures" if tries == 1 else f"prompts, {tries} drawings each"  # what intervals count
        for split, part in draw["parts"].items():
            yield _drawing(f"Drawing, named by a judge: {DRAWN_SPLITS.get(split, split)}", part, draw["judge"], unit)
        for split, part in draw.get("icons", {}).items():
            yield _icons(f"Drawing, checked for what was asked: {DRAWN_SPLITS.get(split, split)}", part, unit)
    if "compare" in document:
        other = document["compare"]["model"]
        title = f"Against {other['name']} ({other['kind']} {str(other['sha256'])[:12]})"
        yield _compare(title, document["compare"]["differences"])


def _reading(title: str, part: dict[str, Any]) -> Part:
    shares: list[tuple[str, dict[str, Any], float | None]] = []
    for kind, score in part["kinds"].items():
        shares.append((kind, score["accuracy"], score["baseline"]))
        if kind == "label" and part["any_tag"]:
            shares.append(("label or tag", part["any_tag"], None))
    if part["balanced"]:
        shares.append(("all but label", part["balanced"]["accuracy"], part["balanced"]["baseline"]))
    shares += [(f"{kind}, every order", found, None) for kind, found in (part.get("circular") or {}).items()]
    notes = [f"VQAv2 accuracy over all: {_number(part['vqa']['value'])}"] if part.get("vqa") else []
    if part["yes_no"]:
        scores = part["yes_no"]
        notes.append(
            f"yes/no: F1 {_number(scores['f1'])}, precision {_number(scores['precision'])}, "
            f"recall {_number(scores['recall'])}, says yes {_number(scores['yes_ratio'])}, unclear {scores['unclear']}"
        )
    seen = "accuracy, with 95 % interval; upright: always the commonest answer"
    return _of_shares(title, shares, "accuracy", "questions", notes, seen)


def _drawing(title: str, part: dict[str, Any], judge: dict[str, Any], unit: str) -> Part:
    names = ("drawn, top 1", "real, top 1", "drawn, top 5", "real, top 5")
    shares = [(name, part[name.replace(", top ", "_top")], None) for name in names]
    value, interval = _share(part["top1_ratio"])
    halves = _number(part["kid_lite0_real_halves"])
    notes = [
        f"drawn over real, top 1: {value} ({interval})",
        f"KID-Lite0 {_number(part['kid_lite0'])}; between halves of the real pictures {halves}",
        f"LabelScorer, trained on {judge['pictures']} pictures of {', '.join(judge['styles'])}; "
        f"{judge['candidates']} candidates, chance {judge['chance']:.4f}",
    ]
    seen = "share that the judge names rightly, with 95 % interval"
    return _of_shares(title, shares, "named", unit, notes, seen)


def _icons(title: str, part: dict[str, Any], unit: str) -> Part:
    shares = [(name.replace("_", " "), found, None) for name, found in part.items()]
    notes = ["shuffled: the colour that another drawing's prompt asks for; real: the checker on the real pictures"]
    return _of_shares(title, shares, "right", unit, notes, "share that the checker passes, with 95 % interval")


def _scenes(title: str, part: dict[str, Any]) -> Part:
    rest = {name.replace("_", " "): found for name, found in part.items() if name != "tasks"}
    shares = [(name, found, None) for name, found in {**part["tasks"], **rest}.items()]
    notes = ["right: as many things as asked, each named by the judge, in the asked relation; real: real scenes"]
    return _of_shares(title, shares, "right", "scenes", notes, "share that the judge passes, with 95 % interval")


def _shapes(title: str, part: dict[str, Any]) -> Part:
    shares = [(task, share, None) for task, share in part["tasks"].items()]
    shares.append(("real pictures", part["real"], None))
    shares += [("others' captions", part["shuffled"], None)] if "shuffled" in part else []
    notes = [f"mean of tasks: {_number(part['mean_of_tasks'])}"]
    seen = "share that the exact checker passes, with 95 % interval"
    return _of_shares(title, shares, "passed", "pictures", notes, seen)


def _of_shares(title: str, shares: Shares, what: str, unit: str, notes: Sequence[str], seen: str) -> Part:
    based = any(baseline is not None for _, _, baseline in shares)  # a column, where any has one
    rows, drawn = [], []
    for name, share, baseline in shares:
        against = ("" if baseline is None else _number(baseline),) if based else ()
        rows.append((name, *_share(share), *against, str(share["count"])))
        drawn.append(Bar(name, share["value"], share["low"], share["high"], baseline))
    head = ("", what, "95 %", *(("baseline",) if based else ()), unit)
    return Part(title, head, rows, tuple(notes), tuple(drawn), seen)


def _compare(title: str, differences: dict[str, Any]) -> Part:
    rows = [
        (
            score,
            *(_number(found[part]) for part in ("first", "second", "value")),
            f"{_number(found['low'])} to {_number(found['high'])}",
            _number(found["p_value"]),
            f"{found['changed']} of {found['count']}",
        )
        for score, found in differences.items()
    ]
    return Part(title, ("", "this", "other", "difference", "95 %", "p", "changed"), rows)


def _share(share: dict[str, Any]) -> tuple[str, str]:
    return _number(share["value"]), f"{_number(share['low'])}-{_number(share['high'])}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


# One picture to look at: real pictures above, drawings below, the label under both.
#
# It lays out arrays and knows no model, judge or dataset; which cells stand on it is chosen by the caller.
# Axes: S side of a picture in pixels.

WIDTH = 1200  # of the sheet, in pixels
COLUMNS = 8
MARGIN, GAP, LINE = 28, 16, 22  # around everything; between cells; height of a label
HEADING = 64
BETWEEN = 20  # sections
SIDE = 128  # of a picture: twice what the default model draws
ROW = 2 * SIDE + LINE + GAP
INK, FAINT, RULE, PAPER = "#1f2328", "#656d76", "#d0d7de", "#ffffff"
LARGEST_BYTES = 400_000  # what a page may load; above it the sheet gets a palette, and a smaller one
PALETTES = (256, 128, 64)


@dataclass(frozen=True, eq=False)
class Cell:
    label: str
    real: np.ndarray  # uint8 (S, S, 3)
    drawn: np.ndarray  # uint8 (S, S, 3)


@dataclass(frozen=True, eq=False)
class Section:
    heading: str
    remark: str  # behind the heading, in grey
    cells: Sequence[Cell]


def draw_sheet(sections: Sequence[Section]) -> Image:
    """Sections below one another, eight cells a row; a section without cells is left out."""
    sections = [section for section in sections if section.cells]
    rows = [-(-len(section.cells) // COLUMNS) for section in sections]
    height = 2 * MARGIN + sum(HEADING + count * ROW + BETWEEN for count in rows) - GAP - BETWEEN
    sheet = pillow().new("RGB", (WIDTH, height), PAPER)
    top = MARGIN
    for section, count in zip(sections, rows):
        _write_heading(sheet, section, top)
        for index, cell in enumerate(section.cells):
            row, column = divmod(index, COLUMNS)
            left = MARGIN + column * (WIDTH - 2 * MARGIN + GAP) // COLUMNS
            _paste(sheet, cell, left, top + HEADING + row * ROW)
        top += HEADING + count * ROW + BETWEEN
    return sheet


def as_png(sheet: Image) -> bytes:
    """In full colour, or with the largest palette that keeps it light enough."""
    encoded = _encoded(sheet)
    for colours in PALETTES:
        if len(encoded) > LARGEST_BYTES:
            encoded = _encoded(sheet.quantize(colours, dither=pillow().Dither.NONE))
    return encoded


def _paste(sheet: Image, cell: Cell, left: int, top: int) -> None:
    pil = pillow()
    for picture, below in ((cell.real, 0), (cell.drawn, SIDE)):
        sheet.paste(pil.fromarray(picture).resize((SIDE, SIDE), pil.Resampling.LANCZOS), (left, top + below))
    font = _font(13)
    label = _shortened(cell.label, font, SIDE + GAP - 4)
    x = left + (SIDE - font.getlength(label)) / 2
    _pen(sheet).text((x, top + 2 * SIDE + 3), label, fill=INK, font=font)


def _write_heading(sheet: Image, section: Section, top: int) -> None:
    pen, font = _pen(sheet), _font(24)
    pen.text((MARGIN, top), section.heading, fill=INK, font=font)
    pen.text((MARGIN + font.getlength(section.heading) + 14, top + 8), section.remark, fill=FAINT, font=_font(15))
    pen.line((MARGIN, top + 40, WIDTH - MARGIN, top + 40), fill=RULE, width=1)


def _shortened(text: str, font: Any, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _pen(sheet: Image) -> Any:
    from PIL import ImageDraw

    return ImageDraw.Draw(sheet)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _encoded(sheet: Image) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()
