"""What a sensor is to everything that samples one; and how a number is read from a file of the kernel.

A sensor that is not there, may not be read or says nonsense raises MissingError with the reason.  Never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import MissingError

__all__ = ["Sensor", "read_number"]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Sensor:
    source: str  # "INA3221", "tegrastats", "RAPL", "NVML"
    covers: str  # what its energy is the energy of
    counts: bool  # True: `read` gives joules since some beginning; False: it gives watts
    read: Callable[[], float]
    close: Callable[[], None] = _nothing


def read_number(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist") from None
    except PermissionError:
        raise MissingError(f"{path} may not be read by this user: permission denied") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path} cannot be read: {reason}") from error
    try:
        return int(text)
    except ValueError:
        raise MissingError(f"{path} holds {text[:40]!r}, expected a number") from None
