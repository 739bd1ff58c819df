"""Which board a model fits, on paper: bundle, memory reading and drawing, keys and values, a precision a row.

Nothing is run.  Weights take what calibration of other models says of an engine's; activations, some hundred megabytes
for a large picture, are in the runtime's share and in nothing else.  Reading needs what sees and writes, drawing all
but what sees.  A board fits when one process does both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from edgemm.estimate.devices import DEVICES
from edgemm.estimate.estimate import RUNTIME_BYTES, WEIGHTS_IN_MEMORY
from edgemm.families.paper import PRECISIONS, Paper
from edgemm.report.page import text_table

__all__ = ["BOARDS", "Row", "as_json", "describe", "rows_of"]

READS = {"image_encoder", "vq_encoder", "transformer", "text_head"}
TOKENS = 2048  # of keys and values
BOARDS = {  # as tables call it -> gigabytes for a model: what the board has, less what its system keeps
    "Orin Nano 8": DEVICES["orin-nano-8gb"].memory_gb - DEVICES["orin-nano-8gb"].system_gb,
    "NX 16": DEVICES["orin-nx-16gb"].memory_gb - DEVICES["orin-nx-16gb"].system_gb,
    "AGX 32": 32 - DEVICES["agx-orin-64gb"].system_gb,
    "AGX 64": DEVICES["agx-orin-64gb"].memory_gb - DEVICES["agx-orin-64gb"].system_gb,
    "Thor": DEVICES["thor-t5000"].memory_gb - DEVICES["thor-t5000"].system_gb,
}


@dataclass(frozen=True)
class Row:
    """Gigabytes of one precision."""

    precision: str
    bundle_gb: float
    reading_gb: float
    drawing_gb: float | None  # None: it cannot
    both_gb: float
    kv_gb: float

    def fits(self, board: str) -> bool:
        return self.both_gb <= BOARDS[board]


def rows_of(paper: Paper) -> Iterator[Row]:
    for precision in PRECISIONS:
        sizes = {name: paper.memory_bytes(name, precision) for name in paper.components}
        kv = paper.kv_bytes(TOKENS, 4 if precision == "fp32" else 2)
        whole = sum(sizes.values())
        reading = sum(size for name, size in sizes.items() if name in READS)
        drawing = whole - sizes.get("image_encoder", 0)
        yield Row(
            precision=precision,
            bundle_gb=paper.bundle_bytes(precision) / 1e9,
            reading_gb=_in_memory(reading, kv),
            drawing_gb=_in_memory(drawing, kv) if sizes.keys() - READS else None,
            both_gb=_in_memory(whole, kv),
            kv_gb=kv / 1e9,
        )


def _in_memory(weights: int, kv: int) -> float:
    return (WEIGHTS_IN_MEMORY[1] * weights + kv + RUNTIME_BYTES[1]) / 1e9


def describe(paper: Paper) -> Iterator[str]:
    table = [("precision", "bundle GB", "reading GB", "drawing GB", "K/V GB", *BOARDS)]
    for row in rows_of(paper):
        drawing = "-" if row.drawing_gb is None else f"{row.drawing_gb:.1f}"
        fits = ("fits" if row.fits(board) else "no" for board in BOARDS)
        table.append(
            (row.precision, f"{row.bundle_gb:.1f}", f"{row.reading_gb:.1f}", drawing, f"{row.kv_gb:.2f}", *fits)
        )
    yield f"estimate, nothing was run; peak memory with {TOKENS} tokens of keys and values:"
    yield from text_table(table, left=(0,))


def as_json(paper: Paper) -> list[dict[str, object]]:
    return [
        asdict(row) | {"fits": {board: row.fits(board) for board in BOARDS}, "estimated": True}
        for row in rows_of(paper)
    ]
