"""Which of a Jetson's power rails make its total: taken twice, a watt would count twice.

Orin Nano and Orin NX measure the module's input, VDD_IN; the Thor kit measures its own, VIN.  AGX Orin has no such
rail, so its module's rails are added up: that leaves out the carrier board and what the converters lose.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["covers", "is_rail", "total_rails"]

INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")  # any of them holds all others
CARRIER = "CVB_"  # rails of a carrier board (AGX Orin Industrial) feed the module's, so they are no part of a sum


def is_rail(label: str) -> bool:
    """False for inputs that are not connected, and for the INA3221's own sum."""
    return bool(label) and label != "NC" and not label.lower().startswith("sum of")


def total_rails(names: Iterable[str]) -> tuple[str, ...]:
    """Those whose sum is the total; empty when there is none."""
    found = [name for name in names if is_rail(name)]
    for name in INPUTS:
        if name in found:
            return (name,)
    return tuple(name for name in found if not name.startswith(CARRIER))


def covers(rails: tuple[str, ...]) -> str:
    if len(rails) == 1 and rails[0] in INPUTS:
        return f"{rails[0]}, the input of the {'kit' if rails[0] == 'VIN' else 'module'}"
    return f"sum of the rails {', '.join(rails)}"
