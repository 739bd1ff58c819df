"""One picture that shows what is in a dataset: the same emoji a row, a style a column; or simply the first scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.data.format import Sample
from edgemm.data.splits import stable_fraction

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["contact_sheet"]

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
