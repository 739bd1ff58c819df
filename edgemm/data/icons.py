"""Which drawing stands for which emoji: an icon set joined to Unicode code points, as SVG text.

Most sets say so in chars.json; the others are matched by name, spelled as another set spells it (noto-v1, fluent-color)
or as Unicode names the character, run together (fxemoji: "alarmclock").  Skin tones and other variants are left out
because the labels know only the default drawing.  Labels and families are in labels.py, pixels in rasterise.py.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgemm.data.labels import Label, bare_hexcode, slug
from edgemm.data.sources import read_json
from edgemm.errors import InputError

__all__ = ["match_by_name", "name_codes", "read_icons", "run_together_names", "svg_of"]


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
