"""SVG text to pixels: resvg where it is installed, CairoSVG otherwise.

The two agree within half a grey level on average, so each is the other's test.
Which icon to draw is icons.py's business.
"""

from __future__ import annotations

import importlib
import importlib.util
import io

from PIL import Image

from edgemm.errors import MissingError

__all__ = ["RASTERISERS", "on_white", "rasterise"]

# name -> module, in order of preference
RASTERISERS = {"resvg": "resvg_py", "cairosvg": "cairosvg"}


def rasterise(svg: str, size: int, *, rasteriser: str | None = None) -> Image.Image:
    """Draw `svg` into a transparent RGBA picture of `size` x `size` pixels."""
    name = rasteriser or _preferred()
    module = importlib.import_module(RASTERISERS[name])
    if name == "resvg":
        # No system fonts: a picture must not depend on the machine, and loading them takes longer than drawing.
        png = bytes(module.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    else:
        png = module.svg2png(bytestring=svg.encode(), output_width=size, output_height=size)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def on_white(picture: Image.Image) -> Image.Image:
    """Composite an RGBA picture on white."""
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _preferred() -> str:
    for name, module in RASTERISERS.items():
        if importlib.util.find_spec(module):
            return name
    raise MissingError("no SVG rasteriser is installed; run: pip install 'edgemm[data]' (or: pip install resvg_py)")
