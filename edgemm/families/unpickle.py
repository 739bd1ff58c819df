"""`python -m edgemm.families.unpickle FOLDER`: every pickle of weights in a folder, as safetensors beside it.

A pickle may hold a program, so no other part of edgemm opens one.  Here torch reads tensors and nothing else
(weights_only), in a process of its own that ends with it.  The pickle stays where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError, EdgemmError, InputError, UsageError

__all__ = ["convert", "how", "pickles_in"]

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INSIDE = ("state_dict", "model", "module", "params", "ema")  # under which trainers put the weights


def pickles_in(folder: Path) -> list[Path]:
    return sorted(path for kind in PICKLES for path in folder.glob(kind) if path.name != "training_args.bin")


def how(folder: Path) -> str:
    """The line that a user may type."""
    return f"python -m edgemm.families.unpickle {folder}"


def convert(path: Path) -> Path:
    """Where the tensors went; CheckpointError where it holds anything else."""
    import torch
    from safetensors.torch import save_file

    output = path.with_suffix(".safetensors")
    if output.exists():
        raise InputError(f"{output}: exists already")
    with reading(path, "torch reads no weights in it (weights_only)", CheckpointError):
        tensors = _tensors(torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path)), path)
        places: set[int] = set()
        for name, tensor in tensors.items():  # the format has no two names for one memory
            tensors[name] = tensor.detach().contiguous()
            place = tensors[name].untyped_storage().data_ptr()
            if place in places:
                tensors[name] = tensors[name].clone()
            places.add(place)
    try:
        save_file(tensors, output, metadata={"format": "pt"})
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return output


def _is_zip(path: Path) -> bool:
    """Only torch's newer format can be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _tensors(found: Any, path: Path) -> dict[str, Any]:
    import torch

    inner = next(
        (found[key] for key in INSIDE if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), found
    )
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(f"{path}: holds a {type(inner).__name__}, expected tensors by name")
    odd = [str(name) for name, value in inner.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is no tensor; expected tensors by name and nothing else")
    return {str(name): value for name, value in inner.items()}


def main(words: list[str]) -> int:
    try:
        if len(words) != 1:
            raise UsageError(f"expected a folder: {how(Path('FOLDER'))}")
        found = pickles_in(Path(words[0]))
        if not found:
            raise InputError(f"{words[0]}: no pickle of weights ({', '.join(PICKLES)})")
        for path in found:
            print(f"Wrote {convert(path)}")
    except EdgemmError as error:
        print(f"unpickle: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
