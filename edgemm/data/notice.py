"""The licences that travel with the pictures.

The icon packages carry no licence file, so the texts are ours to bring.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from edgemm.data.sources import Package

__all__ = ["OURS", "write_notice"]

OURS = "The pictures were drawn by edgemm itself and carry edgemm's licence."
TEXTS = Path(__file__).with_name("licences")


def write_notice(folder: Path, packages: Sequence[Package], terms: str = OURS) -> None:
    """NOTICE and LICENSES/ for the packages a dataset was made from, or the `terms` of one made from none."""
    lines = ["Pictures and labels in this folder", ""]
    if not packages:
        lines.append(terms)
    for package in packages:
        what = "labels and tags taken" if package.name == "emojibase-data" else "drawings rasterised on white"
        lines.append(f"- {what} from the npm package {package.name} {package.version}")
        lines.append(f"  by {package.author}; {package.licence}; see LICENSES/{package.licence_file}")
        (folder / "LICENSES").mkdir(exist_ok=True)
        shutil.copyfile(TEXTS / package.licence_file, folder / "LICENSES" / package.licence_file)
    (folder / "NOTICE").write_text("\n".join(lines) + "\n", encoding="utf-8")
