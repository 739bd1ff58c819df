"""The open icon sets: who drew them, under which terms, how they spell, and which of them are kept from training.

Only sets under MIT, ISC, Apache-2.0 and CC0; logos and CC BY sets are left out.  `Package` pins each; what a package
says of its licence and author in its own info.json must agree with the pin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgemm.data.icon_names import Spelling
from edgemm.data.sources import Package, read_json
from edgemm.errors import CheckFailedError

__all__ = ["HELD_OUT", "ICON_SETS", "IconSet", "check_terms", "trademarks"]


@dataclass(frozen=True)
class IconSet:
    package: Package
    spelling: Spelling

    @property
    def is_coloured(self) -> bool:
        """Whether the drawings bring colours of their own; the others are drawn in any."""
        return self.spelling.rest == "coloured"


def _package(name: str, version: str, sha512: str, licence: str, author: str) -> Package:
    return Package(f"@iconify-json/{name}", version, sha512, licence, f"{licence}.txt", author)


FLUENT: dict[str, str | None] = {f"{size}-{word}": way for size in (24, 28, 20, 32, 16, 48, 12, 10)
          for word, way in (("regular", "outlined"), ("filled", "filled"), ("light", None), ("color", None))
}  # fmt: skip
SYMBOLS: dict[str, str | None] = {"outline": "outlined", "rounded": "filled", "sharp": "filled",
           "outline-rounded": "outlined", "outline-sharp": "outlined"}  # fmt: skip
PHOSPHOR: dict[str, str | None] = {
    "thin": "thin",
    "light": None,
    "bold": "bold",
    "fill": "filled",
    "duotone": "two-tone",
}
HEALTH: dict[str, str | None] = {"outline": "outlined", "24px": None, "outline-24px": None, "negative": None}

# In the order in which twins across sets are kept: sets to train on come first.
ICON_SETS: dict[str, IconSet] = {
    "ph": IconSet(
        _package(
            "ph",
            "1.2.2",
            "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
            "MIT",
            "Phosphor Icons",
        ),
        Spelling("outlined", PHOSPHOR),
    ),
    "lucide": IconSet(
        _package(
            "lucide",
            "1.2.137",
            "uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg==",
            "ISC",
            "Lucide Contributors",
        ),
        Spelling("outlined"),
    ),
    "fluent": IconSet(
        _package(
            "fluent",
            "1.2.60",
            "+Tc4TcygQpzm2QNQ3v1/p5V+3OWczkJzKMqUw01pzGiIYLD85uhWPY4GaERkU0+J9J9ZqGQEWKSOk/qPL2ofsw==",
            "MIT",
            "Microsoft Corporation",
        ),
        Spelling("filled", FLUENT),
    ),
    "material-symbols": IconSet(
        _package(
            "material-symbols",
            "1.2.98",
            "ycgn080/EGstyYcJFu+HN0TYI+ts/KFPb+An0dzpwZit4M/BoFO9U54BwBmrS2Qo/3g9NYV4Y/g1BT425tNgEw==",
            "Apache-2.0",
            "Google",
        ),
        Spelling("filled", SYMBOLS),
    ),
    "mdi": IconSet(
        _package(
            "mdi",
            "1.2.3",
            "O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
            "Apache-2.0",
            "Pictogrammers",
        ),
        Spelling("filled", {"outline": "outlined"}),
    ),
    "maki": IconSet(
        _package(
            "maki",
            "1.2.5",
            "ZSeyytU+a720d/mX+XXQicmKGgFTFK4yDvhlK9NUnWjc8jChujwb8bJLfhhp65BYDyq/1lIbeAimQPuVwMyxAg==",
            "CC0-1.0",
            "Mapbox",
        ),
        Spelling("filled", {"11": None, "15": None}),
    ),
    "temaki": IconSet(
        _package(
            "temaki",
            "1.2.6",
            "WqLjY9XW3y3OO4OemOhDldloN6MCHPwM0psmlsSrLMDzsVgODr7LsktBwLfYlOwNoMaUNPOrqp66jaMBAQDaDg==",
            "CC0-1.0",
            "Bryan Housel",
        ),
        Spelling("filled"),
    ),
    "pinhead": IconSet(
        _package(
            "pinhead",
            "1.2.28",
            "l05VRT6FPehVhtq51fFqSym0e1wmpUM43GfuBSOMXovlz+M8l8C0FCHljdrKamV2dHxXgA8QosGe7yoWrfAbFg==",
            "CC0-1.0",
            "Quincy Morgan",
        ),
        Spelling("filled"),
    ),
    "healthicons": IconSet(
        _package(
            "healthicons",
            "1.2.13",
            "1c6nzjXoYBHwFqckX4Jb0PIReOzm3FZ4hWHNz/YYw1yL7QRBTeolh+S4kWpjWVa8hn9oJjgdFv0fyd8ERcRiEA==",
            "MIT",
            "Resolve to Save Lives",
        ),
        Spelling("filled", HEALTH),
    ),
    "fluent-color": IconSet(
        _package(
            "fluent-color",
            "1.2.21",
            "VETjGx7BMpVsCR3HV5g5t6oBGZ92XKzIRClS5xUvDn1YHAkQTF9OyF/aFdtxYOC8JROoI1SNO/Ql6jZeK7mroA==",
            "MIT",
            "Microsoft Corporation",
        ),
        Spelling("coloured", dict.fromkeys(("24", "28", "20", "32", "16", "48"), "coloured")),
    ),
    "icon-park": IconSet(
        _package(
            "icon-park",
            "1.2.4",
            "S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
            "Apache-2.0",
            "ByteDance",
        ),
        Spelling("coloured"),
    ),
    "flat-color-icons": IconSet(
        _package(
            "flat-color-icons",
            "1.2.3",
            "KcmJ7CY0TKFv5GuBjiS4/v++jEcNXna1jfY+yq014tnw/MN/jMI2oYpoMHGuIpYtUqDu7eove+WySnOYO8nS3w==",
            "MIT",
            "Icons8",
        ),
        Spelling("coloured"),
    ),
    "meteocons": IconSet(
        _package(
            "meteocons",
            "1.2.4",
            "E7YV02ql5WmJgAOpXU/hoF9Mdshq73KjwR6fBxZ5SrqMJghMa3CIcRG6NQGwP4I1uBOhIjOFlAikYoPAKuT56A==",
            "MIT",
            "Bas Milius",
        ),
        Spelling("coloured", {"fill": "coloured"}),
    ),
    "marketeq": IconSet(
        _package(
            "marketeq",
            "1.2.2",
            "LeHw0zlwk3LJEFqTBXz1GPeLSpn2UExIYn2ywcBRb9ax3ZJtRslQNcNpz1S2dUcPM1Kj68WCqWQkJz2D5fpkmA==",
            "MIT",
            "Marketeq",
        ),
        Spelling("coloured"),
    ),
    "hugeicons": IconSet(
        _package(
            "hugeicons",
            "1.2.35",
            "c06tY90JZnKhOLBAKoQ1z2pqXMRdATuYXslTKwaaIAjLzKsTIsE+GGknY6+qo/SP0U/NG9xQjr4N+zfDqOeQiQ==",
            "MIT",
            "Hugeicons",
        ),
        Spelling("outlined"),
    ),
    "tabler": IconSet(
        _package(
            "tabler",
            "1.2.41",
            "GHg+H/cnr0anaCoV383JONiOMxZQOdojWYNLgL3x0fRE07YW7c+AHiYmIhXet//oq26T830qitdP7l43ojiCXw==",
            "MIT",
            "Paweł Kuna",
        ),
        Spelling("outlined", {"filled": "filled"}),
    ),
}
HELD_OUT = {"hugeicons": "held-out-style", "tabler": "scorer"}  # artists never trained on; the others are


def check_terms(name: str, tarball: Path) -> None:
    """CheckFailedError where the package's own info.json names other terms or another author than its pin."""
    package, info = ICON_SETS[name].package, read_json(tarball, "info.json")
    found = (info["license"]["spdx"], info["author"]["name"])
    if found != (package.licence, package.author):
        raise CheckFailedError(
            f"{tarball.name} says {found[0]} by {found[1]}, expected {package.licence} by {package.author}"
        )


def trademarks(tarballs: Iterable[Path]) -> set[str]:
    """Names of brands, as sets mark theirs: a category of that name, "brand-NAME", "NAME-logo"."""
    marked: set[str] = set()
    for tarball in tarballs:
        names = read_json(tarball, "icons.json")["icons"]
        categories = read_json(tarball, "metadata.json").get("categories") or {}
        marked |= {name for category, some in categories.items() if "brand" in category.lower() for name in some}
        marked |= {name.removeprefix("brand-").removesuffix("-filled") for name in names if name.startswith("brand-")}
        marked |= {name.removesuffix("-logo") for name in names if name.endswith("-logo")}
    return marked
