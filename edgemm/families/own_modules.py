"""Published tensors in modules of our own, where no library that is installed knows the model.

A model is made without memory (meta device), and its weights stay in their files (kept_weights.py).  What is missing,
cut or of another shape is told in one line, before anything is traced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgemm.bundle.files import read_text, reading
from edgemm.errors import CheckpointError
from edgemm.families.folder import check_counts
from edgemm.families.hf_checkpoint import by_index, is_of_no_layer, no_weights
from edgemm.model.kept_weights import MappedFile, check_real, kept, widened
from edgemm.model.pretrained import POINTER, check_tensors

__all__ = [
    "RmsNorm",
    "check_settings",
    "fill",
    "from_sizes",
    "is_fetched",
    "is_weighed",
    "keep_biases",
    "names_and_shapes",
    "names_in",
    "numbers_of",
    "read_config",
    "starting",
]


class RmsNorm(nn.Module):
    """Names as the library has them (llama.py's `rms`)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


T = TypeVar("T")
ABOVE_ZERO = (
    "rope_theta",
    "scaling_factor",
    "interpolation_scale",
    "norm_eps",
    "rms_norm_eps",
    "layer_norm_eps",
)  # divided by, or a root's
WHOLE = ("stride", "padding", "kernel_size", "norm_num_groups")  # of convolutions and norms
MOST_WHOLE = 1024
INDEX = ".safetensors.index.json"

Places = Mapping[str, Path]  # a tensor's name in the model -> the file it is in


def read_config(path: Path, what: str) -> dict[str, Any]:
    """A JSON object with no absurd numbers in it; `what` says what the file would tell."""
    with reading(path, f"{what}: cannot be read", CheckpointError):
        found = json.loads(read_text(path))
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}: {what}: expected an object")
        check_counts(found, path, least=1)
        _check_numbers(found, path)
    return found


def _check_numbers(found: dict[str, Any], path: Path) -> None:
    for key in ABOVE_ZERO:
        value = found.get(key)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise CheckpointError(f"{path}: {key} is {value!r}, expected a number above 0")
    for key in WHOLE:
        value, least = found.get(key, 1), 0 if key == "padding" else 1
        if type(value) is not int or not least <= value <= MOST_WHOLE:
            raise CheckpointError(f"{path}: {key} is {value!r}, expected a whole number from {least} to {MOST_WHOLE}")
    for inner in found.values():
        if isinstance(inner, dict):
            _check_numbers(inner, path)


def names_and_shapes(path: Path, what: str) -> dict[str, tuple[int, ...]]:
    """Of one .safetensors file, from its header alone."""
    try:
        return check_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({what})") from error


def is_fetched(path: Path) -> bool:
    """Whether weights lie there: neither nothing nor a pointer to them, for sizes can be told without."""
    with reading(path, kind=CheckpointError):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) != POINTER


def is_weighed(folder: Path) -> bool:
    return any(is_fetched(path) for path in folder.glob("*.safetensors"))


def names_in(folder: Path) -> dict[str, Path]:
    """`fill`'s places of a folder's *.safetensors, or of those that its index names, from their headers alone."""
    index = next((path for path in sorted(folder.glob(f"*{INDEX}")) if "." not in path.name.removesuffix(INDEX)), None)
    listed = {} if index is None else by_index(folder, index.name)
    files = sorted({folder / name for name in listed.values()}) or sorted(folder.glob("*.safetensors"))
    if not files:
        raise no_weights(folder)
    places: dict[str, Path] = {}
    for file in files:
        for name in names_and_shapes(file, "the weights"):
            if name in places:
                raise CheckpointError(f"{folder}: {name} is in {places[name].name} and in {file.name}; keep one")
            places[name] = file
    for name, file in listed.items():
        if places.get(name) != folder / file:
            raise CheckpointError(f"{index}: says that {name} is in {file}, where it is not")
    return places


def from_sizes(make: Callable[[], T], folder: Path) -> T:
    """The model without its weights, on the meta device; a config that cannot be one is the folder's fault."""
    with reading(folder, "its configs do not fit together", CheckpointError), torch.device("meta"):
        return make()


def keep_biases(model: nn.Module, names: set[str]) -> None:
    """Linear and convolution layers get the biases that a file has (`names`, NAME.bias) and lose the others."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bias = torch.empty(len(module.weight), device="meta") if f"{name}.bias" in names else None
            module.register_parameter("bias", None if bias is None else nn.Parameter(bias))


@torch.no_grad()
def fill(
    model: nn.Module,
    folder: Path,
    places: Places,
    renamed: Callable[[str], str] = lambda name: name,
    given: tuple[str, ...] | str = (),
    shaped: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    unused: tuple[str, ...] | None = None,
) -> None:
    """Reads every tensor of the model but those that begin so (`given`: they have been read); `renamed` gives a name in
    the file for one in the model, `shaped` what the model keeps of a tensor in the file.  With `unused`, a tensor that
    has no place in the model and does not begin so is refused: configs that say too little would be half right.  One of
    a layer that the model's list does not reach is refused always.  Tied parameters are read once."""
    wanted, tied = {**dict(model.named_parameters()), **_stored_buffers(model)}, _tied(model)
    wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(given)}
    if missing := sorted(wanted.keys() - places.keys()):
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, for example {renamed(missing[0])}")
    left = sorted(name for name in places.keys() - model.state_dict().keys() if not name.startswith(unused or ()))
    if unused is not None and left:
        raise CheckpointError(
            f"{folder}: {len(left)} tensors are in no place that its configs know, for example {renamed(left[0])}"
        )
    if (more := next((name for name in sorted(places) if is_of_no_layer(model, name)), None)) is not None:
        raise CheckpointError(f"{folder}: {renamed(more)} is of a layer that its config does not count")
    by_file: dict[Path, list[str]] = {}
    for name in wanted:
        by_file.setdefault(places[name], []).append(name)
    for path, names in by_file.items():
        with reading(path, kind=CheckpointError):
            file = MappedFile(path)
            for name in names:
                found = kept(shaped(file.tensor(renamed(name))), file)
                _put(model, name, found, wanted[name], f"{path}: {renamed(name)}")
    for name, first in tied.items():
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._parameters[last] = model.get_parameter(first)


def _tied(model: nn.Module) -> dict[str, str]:
    """Another name of a parameter -> its first one."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that a state has; a count of batches is none of anybody's business."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: x for name, x in model.state_dict().items() if name not in parameters and x.is_floating_point()}


def check_settings(
    found: Mapping[str, Any], known: Mapping[str, Any], path: Path, why: str = "this export knows"
) -> None:
    """Refuses by name what is said otherwise than these modules compute; who is silent means what is known."""
    for key, value in known.items():
        if found.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {found[key]!r}, {why} {value!r}")


def numbers_of(found: dict[str, Any], key: str, path: Path, count: int = 3, usual: Any = None) -> tuple[float, ...]:
    """A setting that is a list of `count` finite numbers."""
    numbers = found.get(key, usual)
    real = isinstance(numbers, (list, tuple)) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in numbers
    )
    if not real or len(numbers) != count:
        raise CheckpointError(f"{path}: {key} is {numbers!r}, expected {count} numbers")
    return tuple(numbers)


def _put(model: nn.Module, name: str, found: Tensor, wanted: Tensor, where: str) -> None:
    check_real(found, where)
    if found.shape != wanted.shape:
        raise CheckpointError(f"{where} has shape {tuple(found.shape)}, its config says {tuple(wanted.shape)}")
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(found.float(), requires_grad=False)
    else:
        module._buffers[last] = widened(found).float()


def starting(names: Iterable[str], path: Path, prefix: str = "") -> dict[str, Path]:
    """`fill`'s places of a file's tensors, in the model under `prefix`."""
    return {prefix + name: path for name in names}
