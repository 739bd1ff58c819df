"""Everything edgemm can refuse, as one tree; the command line turns each into one line and an exit code.

    EdgemmError (1)
    ├── UsageError (2)                 the call itself makes no sense: a negative seed, zero steps
    ├── InputError (3)                 what was given cannot be used: a picture, a prompt, a recipe, a dataset
    │   ├── CheckpointError            a checkpoint folder that is missing a file or lies about a shape
    │   └── BundleError                a bundle that is missing, half written, altered or of another version
    ├── MissingError (4)               this machine lacks something: a package, a backend, a device
    ├── ResourceError (5)              memory, disk or time ran out
    └── CheckFailedError (7)           a comparison ran and failed: parity, quality, hash

Ctrl-C exits with 130.  Numbers in brackets are exit codes; children inherit their parent's.
A message says what was found, what was expected and what to do, on one line.
"""

from __future__ import annotations

import errno
import re

__all__ = [
    "BundleError",
    "CheckFailedError",
    "CheckpointError",
    "EdgemmError",
    "InputError",
    "MissingError",
    "ResourceError",
    "UsageError",
    "ran_out_of_memory",
    "shortened",
]


LONGEST = 900  # letters of a message
LONG_WORD = re.compile(r"(\S{200})\S{150,}(\S{100})")  # a stranger's name is not worth a screen of letters


class EdgemmError(Exception):
    """Base of every error that edgemm raises on purpose."""

    exit_code = 1

    def __init__(self, *said: object) -> None:
        super().__init__(*(shortened(each) if isinstance(each, str) else each for each in said))


def shortened(message: str) -> str:
    """Whatever strangers' files are quoted in it: on one line, which a screen holds."""
    line = LONG_WORD.sub(r"\1...\2", message if "\n" not in message else " ".join(message.split("\n")))
    return line if len(line) <= LONGEST else f"{line[: 2 * LONGEST // 3]} ... {line[-LONGEST // 3 :]}"


class UsageError(EdgemmError, ValueError):
    """An argument is outside what it can mean."""

    exit_code = 2


class InputError(EdgemmError):
    """A file or value that was given cannot be used."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint folder is incomplete or contradicts itself."""


class BundleError(InputError):
    """A bundle is incomplete, altered, or of another version."""


class MissingError(EdgemmError):
    """Something has to be installed or plugged in first; the message says how."""

    exit_code = 4


class ResourceError(EdgemmError):
    """Memory, disk or time ran out; nothing half-written was left."""

    exit_code = 5


class CheckFailedError(EdgemmError):
    """A check ran to its end and the answer was no."""

    exit_code = 7


NO_MEMORY = (  # in the words of the kernel, numpy, torch, ONNX Runtime, OpenVINO, TensorRT, C++ and Python's threads
    *("out of memory", "bad_alloc", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("failed to allocate memory", "unable to allocate", "failed to map segment", "can't start new thread"),
    *("memory allocation of", "insufficient memory"),
    "exception resource temporarily unavailable",  # TensorRT's compiler, of a thread
)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is for want of memory: many libraries have no type for that."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(words in str(error).lower() for words in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
