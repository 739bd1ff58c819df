"""Two rasterisers, each the other's oracle."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgemm.data.icons import on_white, rasterise

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="32" height="32">'
DRAWINGS = {
    "circle": '<circle cx="16" cy="16" r="12" fill="#d9342b"/>',
    "curves": '<path fill="#3b94d9" d="M2 16C2 8 8 2 16 2s14 6 14 14-6 14-14 14c2-6 2-10-4-14S6 14 2 16z"/>',
    "stroke": '<path fill="none" stroke="#402a32" stroke-width="3" stroke-linecap="round" d="M4 28L16 4l12 24"/>',
    "veil": '<rect width="32" height="20" fill="#00a651" opacity=".5"/><rect y="12" width="32" height="20" '
    'fill="#f4c" fill-opacity=".4"/>',
    "gradient": '<linearGradient id="a" x2="1"><stop offset="0" stop-color="#fc0"/><stop offset="1" '
    'stop-color="#06c"/></linearGradient><path fill="url(#a)" d="M3 3h26v26H3z"/>',
    "hole": '<path fill="#222" fill-rule="evenodd" d="M4 4h24v24H4zm6 6v12h12V10z"/>',
}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_resvg_and_cairosvg_agree(drawing):
    pytest.importorskip("cairosvg")
    svg = f"{HEAD}{DRAWINGS[drawing]}</svg>"
    one, other = (np.asarray(on_white(rasterise(svg, 64, rasteriser=name)), float) for name in ("resvg", "cairosvg"))
    # One grey level of 255 on average: they differ only in how edges are antialiased.
    assert np.abs(one - other).mean() < 1.0
    assert one.min() < 200  # and something was drawn


def test_transparency_becomes_white():
    assert np.asarray(on_white(rasterise(f"{HEAD}</svg>", 16))).min() == 255


def test_half_transparent_red_becomes_pink():
    picture = on_white(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (255, 127, 127)


def test_the_same_drawing_gives_the_same_bytes():
    svg = f"{HEAD}{DRAWINGS['gradient']}</svg>"
    assert rasterise(svg, 64).tobytes() == rasterise(svg, 64).tobytes()
