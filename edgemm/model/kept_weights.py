"""Weights that stay in their files: float32 to whoever computes with them, read anew at each use and then let go.

A model of four billion numbers is 16 GB in float32, and its folder 8.  A parameter of a mapped file takes no memory of
its own: an operator that reads it gets a copy in float32, which is gone when the operator is.  Pages of the file that
were read are given back once they come to MOST bytes.  Tracing takes a parameter's shape and no number of it.
Format of the files: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError
from edgemm.model.pretrained import add_tensors, check_tensors

__all__ = [
    "KeptTensor",
    "MappedFile",
    "check_real",
    "kept",
    "mapped_tensors",
    "multiply_columns",
    "place_of",
    "shapes_only",
    "widened",
]

MOST = 64 << 20  # bytes of a file that may stay in memory after they were read
LEAST = 8192  # numbers: what is smaller is traced as it is, for the tracer may compute with it
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
aten = torch.ops.aten
SAME_NUMBERS = {  # or some of them
    aten.detach.default,
    aten.alias.default,
    aten.view.default,
    aten.slice.Tensor,
    aten.t.default,
}
AT_ONCE = 1 << 24  # numbers of a weight that a product reads at a time


class MappedFile:
    """The tensors of a .safetensors file, as they lie there; CheckpointError where it is damaged or cut."""

    def __init__(self, path: Path) -> None:
        check_tensors(path)
        self.path, self.read_bytes = path, 0
        with reading(path, "damaged or cut", CheckpointError), path.open("rb") as file:
            self.start = 8 + int.from_bytes(file.read(8), "little")
            self.entries: dict[str, Any] = json.loads(file.read(self.start - 8))
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # may be larger than all memory
        self.entries.pop("__metadata__", None)

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry["dtype"] not in TYPES:
            raise CheckpointError(f"{self.path}: {name} is {entry['dtype']}, expected one of {', '.join(TYPES)}")
        dtype, (first, last) = TYPES[entry["dtype"]], entry["data_offsets"]
        if first == last:
            return torch.zeros(entry["shape"], dtype=dtype)
        count = (last - first) // dtype.itemsize
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody may write there
            flat = torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=self.start + first)
        return flat.view(entry["shape"])

    def was_read(self, size_bytes: int) -> None:
        self.read_bytes += size_bytes
        if self.read_bytes > MOST:
            if hasattr(mmap, "MADV_DONTNEED"):
                self.bytes.madvise(mmap.MADV_DONTNEED)  # nobody writes there: the next reader finds them in the file
            self.read_bytes = 0


class KeptTensor(torch.Tensor):
    """Says that it is float32; `numbers` are those of the file, which `factors` of the same shape are multiplied to."""

    numbers: Tensor
    file: MappedFile | None
    factors: Tensor | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: Tensor, file: MappedFile | None = None, factors: Tensor | None = None) -> KeptTensor:
        found = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32, requires_grad=False)
        found.numbers, found.file, found.factors = numbers, file, factors
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"KeptTensor({tuple(self.shape)}, {self.numbers.dtype})"

    def in_float(self) -> Tensor:
        """A copy, whose memory is its reader's."""
        copy = self.numbers.to(torch.float32, copy=True)  # strided as it lies: a turned one is read in order
        if self.file is not None:
            self.file.was_read(self.numbers.nbytes)
        return copy if self.factors is None else copy.mul_(self.factors)

    def rows(self, ids: Tensor) -> Tensor:
        found = self.numbers[ids].float()
        return found if self.factors is None else found * self.factors[ids]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if func in SAME_NUMBERS and isinstance(first, KeptTensor):
            look = Tensor.reshape if func is aten.view.default else func  # a part of a table may lie with gaps
            factors = None if first.factors is None else look(first.factors, *args[1:])
            return cls(look(first.numbers, *args[1:]), first.file, factors)
        if func is aten.embedding.default and isinstance(first, KeptTensor):
            return first.rows(args[1])
        if func in (aten.mm.default, aten.addmm.default) and isinstance(args[-1], KeptTensor) and not kwargs:
            return _product(args[-2], args[-1], args[0] if func is aten.addmm.default else None)
        args, kwargs = _pytree.tree_map(widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _product(x: Tensor, weight: KeptTensor, bias: Tensor | None) -> Tensor:
    """x (m, k) times a weight [k, n], a part of its columns after the other: a head has 200 million numbers."""
    (k, n), x, bias = weight.shape, widened(x), widened(bias)
    at_once = max(1, AT_ONCE // k)
    found = [x @ widened(weight[:, start : start + at_once]) for start in range(0, n, at_once)]
    y = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return y if bias is None else y + bias


def kept(numbers: Tensor, file: MappedFile | None = None) -> Tensor:
    """Of a tensor in a file; vectors and whole numbers are read at once."""
    if not numbers.is_floating_point():
        return numbers.clone()
    return KeptTensor(numbers, file) if numbers.ndim > 1 else numbers.to(torch.float32, copy=True).contiguous()


def mapped_tensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All of some files."""
    found: dict[str, Tensor] = {}
    for path in paths:
        file = MappedFile(path)
        add_tensors(found, {name: kept(file.tensor(name), file) for name in file.entries}, path)
        for name in file.entries:
            check_real(found[name], f"{path}: {name}")
    return found


def check_real(tensor: Tensor, where: str) -> None:
    """CheckpointError for what is called a weight and is made of whole numbers: codes of something that packed it."""
    if where.endswith(("weight", "bias")) and not tensor.is_floating_point():
        raise CheckpointError(f"{where} has whole numbers ({str(tensor.dtype).partition('.')[2]}), expected floats")


def widened(x: Any) -> Any:
    """The numbers of a kept tensor, float32 and in memory; anything else as it is."""
    return x.in_float() if isinstance(x, KeptTensor) else x


def multiply_columns(weight: Tensor, factors: Tensor) -> None:
    """A weight (n, k) times factors (k), in place; of a kept one the file stays as it is, and its readers get that."""
    if isinstance(weight, KeptTensor):
        factors = factors.float().expand(weight.shape)  # a row's memory
        weight.factors = factors if weight.factors is None else weight.factors[:1].mul(factors[:1]).expand(weight.shape)
    else:
        weight.mul_(factors)


def place_of(tensor: Tensor) -> int:
    """Where its numbers lie: two parameters of one place are one."""
    return tensor.numbers.data_ptr() if isinstance(tensor, KeptTensor) else tensor.data_ptr()


UNTOUCHED = sum(getattr(mmap, f"MAP_{name}", 0) for name in ("PRIVATE", "ANONYMOUS", "NORESERVE"))


def _untouched(shape: torch.Size) -> Tensor:
    """float32 in pages that nobody had before: what an allocator hands out again is resident, however it is used."""
    room = mmap.mmap(-1, 4 * shape.numel(), **({"flags": UNTOUCHED} if UNTOUCHED else {}))
    return torch.frombuffer(room, dtype=torch.float32).view(shape)


@contextlib.contextmanager
def shapes_only(module: nn.Module) -> Iterator[dict[int, KeptTensor]]:
    """Large kept parameters as memory that nobody touches, of which the system then gives none; by address, what stands
    for them.  Small ones as they are."""
    stands: dict[int, nn.Parameter] = {}  # one for a parameter, however often it is used
    real: dict[int, KeptTensor] = {}
    before: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if isinstance(parameter, KeptTensor):
                if id(parameter) not in stands:
                    small = parameter.numel() <= LEAST
                    value = widened(parameter.data) if small else _untouched(parameter.shape)
                    stands[id(parameter)] = nn.Parameter(value, requires_grad=False)
                    if not small:
                        real[value.data_ptr()] = parameter
                before.append((part._parameters, name, parameter))
    for parameters, name, parameter in before:
        parameters[name] = stands[id(parameter)]
    try:
        yield real
    finally:
        for parameters, name, parameter in before:
            parameters[name] = parameter
