"""The sheet shows what it was given, where it belongs, and stays light."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from edgemm.evaluate.report import Cell, Section, as_png, draw_sheet


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def cells(count: int) -> list[Cell]:
    return [Cell(f"label {index}", flat((200, index, 0)), flat((0, index, 200))) for index in range(count)]


def test_real_stands_above_drawn_in_every_cell():
    sheet = np.asarray(draw_sheet([Section("Seen", "", cells(10))]))
    for index in range(10):
        for red, blue in ((200, 0), (0, 200)):
            rows, columns = np.nonzero((sheet == (red, index, blue)).all(axis=2))
            assert len(rows) == 128 * 128  # twice the size, nothing lost
            if red:
                above, left = rows.min(), columns.min()
        assert rows.min() == above + 128 and columns.min() == left
    assert sheet.shape[1] == 1200


def test_empty_sections_take_no_room():
    one, two = Section("Seen", "", cells(3)), Section("Held out", "", [])
    assert draw_sheet([one, two]).size == draw_sheet([one]).size


def test_a_sheet_of_noise_is_still_light():
    random = np.random.default_rng(0)

    def noisy() -> np.ndarray:
        coarse = Image.fromarray(random.integers(0, 256, (10, 10, 3), np.uint8))
        return np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC))

    full = [Cell("a very long label that does not fit below its picture", noisy(), noisy()) for _ in range(24)]
    encoded = as_png(draw_sheet([Section("Seen", "", full)]))
    assert len(encoded) < 400_000  # in full colour it is more than a megabyte
    assert Image.open(io.BytesIO(encoded)).size[0] == 1200
