"""One picture to look at: real pictures above, drawings below, the label under both.

It lays out arrays and knows no model, judge or dataset; which cells stand on it is chosen by the caller.
Axes: S side of a picture in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.files import pillow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Cell", "Section", "as_png", "draw_sheet"]

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
