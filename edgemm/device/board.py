"""Which Jetson this is, from the files its kernel and its Linux for Tegra leave: nothing is executed.

/proc/device-tree/model and compatible (NUL-terminated), /etc/nv_tegra_release, and nvpmodel's own record of the power
mode.  Every reader takes a root folder, so recorded boards can be read anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgemm.device.machine import read_text

__all__ = ["Board", "read_board"]


@dataclass(frozen=True)
class Soc:
    name: str
    compute_capability: str


SOCS = {
    "nvidia,tegra194": Soc("Xavier", "7.2"),
    "nvidia,tegra234": Soc("Orin", "8.7"),
    "nvidia,tegra264": Soc("Thor", "11.0"),
}
JETPACKS = {35: "5", 36: "6", 38: "7", 39: "7"}  # major of Linux for Tegra -> JetPack


@dataclass(frozen=True)
class Board:
    """None stands for what could not be read."""

    model: str  # as the device tree says it
    soc: str  # "Orin", "Thor"
    compute_capability: str  # of its GPU
    l4t: str | None  # Linux for Tegra, for example "36.4.3"
    jetpack: str | None  # its major number
    power_mode: str | None  # nvpmodel's name for it; clocks, and so every figure, hang on it

    @property
    def target(self) -> str | None:
        """The bundle target that is made for this board."""
        if self.soc == "Thor":
            return "jetson-thor"
        if self.soc == "Orin":
            return {"6": "jetson-orin-jp6", "7": "jetson-orin"}.get(self.jetpack or "")
        return None


def read_board(root: Path = Path("/")) -> Board | None:
    """None on everything that is no Jetson."""
    tree = root / "proc/device-tree"
    found = [SOCS[name] for name in read_text(tree / "compatible").splitlines() if name in SOCS]
    if not found:
        return None
    major, l4t = _l4t(read_text(root / "etc/nv_tegra_release"))
    return Board(
        model=read_text(tree / "model") or "unknown Jetson",
        soc=found[0].name,
        compute_capability=found[0].compute_capability,
        l4t=l4t,
        jetpack=JETPACKS.get(major) if major else None,
        power_mode=_power_mode(root),
    )


def _l4t(release: str) -> tuple[int | None, str | None]:
    """`# R36 (release), REVISION: 4.3, GCID: ...` -> 36, "36.4.3"."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return (int(found.group(1)), f"{found.group(1)}.{found.group(2)}") if found else (None, None)


def _power_mode(root: Path) -> str | None:
    """nvpmodel writes `pmode:0002`; the name of mode 2 stands in its configuration."""
    chosen = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if not chosen:
        return None
    number = int(chosen.group(1))
    named = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)", read_text(root / "etc/nvpmodel.conf"))
    return named.group(1) if named else f"mode {number}"
