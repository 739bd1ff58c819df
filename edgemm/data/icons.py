"""Which drawing stands for which emoji: an icon set joined to Unicode code points, as SVG text.

Most sets say so in chars.json; the others are matched by name, spelled as another set spells it (noto-v1, fluent-color)
or as Unicode names the character, run together (fxemoji: "alarmclock").  Skin tones and other variants are left out
because the labels know only the default drawing.  Labels and families are in labels.py, pixels in icons.py.
"""

from __future__ import annotations

import colorsys
import importlib
import importlib.util
import io
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgemm.data.labels import Label, bare_hexcode, slug
from edgemm.data.sources import read_json
from edgemm.errors import InputError, MissingError

__all__ = [
    "match_by_name",
    "name_codes",
    "read_icons",
    "run_together_names",
    "svg_of",
    "RASTERISERS",
    "on_white",
    "rasterise",
    "ANCHORS",
    "dominant_colour",
    "hue_turned",
    "lab",
]


def read_icons(tarball: Path, labels: dict[str, Label], names: dict[str, str]) -> dict[str, str]:
    """hexcode -> SVG for every label the set draws, in the labels' order; `names` serves sets without chars.json."""
    icons = read_json(tarball, "icons.json")
    chars = {bare_hexcode(code): name for code, name in (read_json(tarball, "chars.json") or {}).items()}
    if not chars:
        chars = match_by_name(icons, names)
    return {code: svg_of(icons, chars[code]) for code in labels if code in chars}


def match_by_name(icons: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    """hexcode -> icon name, for a set that tells no code points.

    Aliases are left out: noto-v1's alias "cricket" is the game, Unicode's cricket is the insect.
    """
    matched: dict[str, str] = {}
    for name in icons["icons"]:
        code = names.get(name)
        if code is not None:
            matched.setdefault(code, name)
    return matched


def name_codes(labels: dict[str, Label], chars: dict[str, str]) -> dict[str, str]:
    """icon name -> hexcode, from another set's chars.json and from the labels; a name with two meanings is dropped."""
    spelled = [(slug(label.text), code) for code, label in labels.items()]
    names = _unambiguous(spelled)
    taken = {name for name, _ in spelled}
    for code, name in chars.items():
        if bare_hexcode(code) in labels and name not in taken:
            names.setdefault(name, bare_hexcode(code))
    return names


def run_together_names(labels: dict[str, Label]) -> dict[str, str]:
    """icon name -> hexcode by Unicode's names of single characters, then by labels; letters and digits alone.

    Unicode's name goes first: its "grinning face with smiling eyes" is another emoji than the label's.
    """
    single = [(_run_together(unicodedata.name(chr(int(code, 16)), "")), code) for code in labels if "-" not in code]
    named = _unambiguous([pair for pair in single if pair[0]])
    labelled = _unambiguous([(_run_together(label.text), code) for code, label in labels.items()])
    return {**labelled, **named}


def _run_together(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _unambiguous(spelled: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name -> hexcode, without the names that stand for two."""
    codes: defaultdict[str, list[str]] = defaultdict(list)
    for name, code in spelled:
        codes[name].append(code)
    return {name: found[0] for name, found in codes.items() if len(found) == 1}


def svg_of(icons: dict[str, Any], name: str) -> str:
    """The SVG text of an icon, aliases followed, mirrored where the alias says so."""
    flipped, icon = False, {}
    while name in icons.get("aliases", {}):
        icon = {**icons["aliases"][name], **icon}
        unknown = set(icons["aliases"][name]) - {"parent", "hFlip"}
        if unknown:
            raise InputError(f"icon alias {name} of {icons['prefix']} uses {sorted(unknown)}, which is not implemented")
        flipped ^= bool(icons["aliases"][name].get("hFlip"))
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)  # a square canvas: the odd tall icon is centred, not stretched
    body = icon["body"]
    if flipped:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{body}</svg>'
    )


# SVG text to pixels: resvg where it is installed, CairoSVG otherwise.
#
# The two agree within half a grey level on average, so each is the other's test.
# Which icon to draw is icons.py's business.

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


# The colour a drawing shows: the one that covers most of it, if it covers enough.

# One or more typical values a name, as sRGB; the nearest in Lab names a pixel.
ANCHORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((220, 40, 40), (250, 80, 70)),
    "orange": ((250, 130, 30), (240, 155, 60)),
    "yellow": ((250, 210, 50), (255, 235, 120)),
    "green": ((50, 150, 60), (120, 200, 80), (0, 210, 110)),
    "blue": ((30, 100, 210), (80, 170, 240), (60, 60, 180)),
    "purple": ((140, 80, 190), (170, 110, 230)),
    "pink": ((250, 130, 180), (255, 190, 215)),
    "brown": ((120, 75, 50), (150, 100, 70)),
    "black": ((20, 20, 20), (50, 50, 50)),
    "grey": ((128, 128, 128), (165, 165, 165)),
    "white": ((255, 255, 255), (230, 230, 230)),
}
SHARE = 0.5  # of the opaque pixels
OPAQUE = 200  # of 255: antialiased edges have no colour of their own


def dominant_colour(picture: Image.Image) -> str | None:
    """The name of the colour that more than half of an RGBA picture's opaque pixels have, or None."""
    pixels = np.asarray(picture, dtype=np.uint8).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] >= OPAQUE, :3]
    if not len(pixels):
        return None
    names = np.array([name for name, values in ANCHORS.items() for _ in values])
    anchors = lab(np.array([value for values in ANCHORS.values() for value in values]))  # (a, 3)
    distance = np.linalg.norm(lab(pixels)[:, None] - anchors[None], axis=-1)  # (p, a)
    found, counts = np.unique(names[distance.argmin(axis=1)], return_counts=True)
    return str(found[counts.argmax()]) if counts.max() > SHARE * len(pixels) else None


def hue_turned(picture: Image.Image, colour: str) -> Image.Image | None:
    """An RGBA drawing in another colour: every hue is turned by the angle that takes its main one there.

    None where the drawing shows no one colour, or does not show `colour` afterwards: a grey thing has no hue to turn,
    and a dark yellow is a brown.
    """
    now = dominant_colour(picture)
    if now is None or now == colour:
        return None
    hue, saturation, value = picture.convert("RGB").convert("HSV").split()
    turn = (_hue(ANCHORS[colour][0]) - _hue(ANCHORS[now][0])) % 256
    turned = Image.merge("HSV", (hue.point([(angle + turn) % 256 for angle in range(256)]), saturation, value)).convert(
        "RGB"
    )
    turned.putalpha(picture.getchannel("A"))
    return turned if dominant_colour(turned) == colour else None


def _hue(rgb: tuple[int, int, int]) -> int:
    """0..255, as Pillow's HSV counts."""
    return round(colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] * 255)


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (n, 3) in 0..255 to CIE L*a*b* under D65."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
