"""One process or many: what differs between them, in one place, on Hugging Face Accelerate.

Every process builds the same model and computes the same batch from (seed, step), then takes its own share of it, so
there is no data to hand out and nothing to remember for a resume.  Gradients are averaged by DistributedDataParallel
(arXiv:2006.15704), or parameters, gradients and optimizer state are sharded (FSDP2, arXiv:2304.11277).  The launcher is
the user's: `accelerate launch` or `torchrun`; see docs/training.md.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.device.machine import read_machine
from edgemm.errors import InputError, ResourceError, UsageError
from edgemm.model.checkpoint import ran_out_of_disk

__all__ = ["Ranks", "Share", "full", "sharded_like", "refusing_full_disk", "refusing_out_of_memory"]


@dataclass(frozen=True)
class Share:
    """Which part of a step's batch is one process's own."""

    rank: int = 0
    count: int = 1  # processes

    def of(self, batch: int) -> slice:
        if batch % self.count:
            raise UsageError(f"recipe: batch is {batch}, expected a multiple of the {self.count} processes")
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


class Ranks:
    """This process among those that the launcher started; alone when there was no launcher."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        # The recipe's `precision` decides, not the launcher's: mixed precision is the loop's own autocast.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
        self.device: torch.device = self.accelerator.device
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.is_first: bool = self.accelerator.is_main_process
        asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")  # accelerate launch --use_fsdp
        self.sharded = asked and self.share.count > 1
        self._module: nn.Module | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is to be called: its gradients are those of the whole batch. Call it before the optimizers
        are made: sharding replaces parameters."""
        if not self.sharded:
            return self.accelerator.prepare_model(module)
        from torch.distributed.fsdp import fully_shard

        fully_shard(module.to(self.device))  # in place
        self._module = module
        return module

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Sharded parameters are whole on every process inside, to draw with and to save; else they always are."""
        held: list[tuple[nn.Module, str, Any]] = []
        for module in self._module.modules() if self._module is not None else ():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    held.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(full(parameter.detach()), parameter.requires_grad)
        try:
            yield
        finally:
            for module, name, parameter in held:
                module._parameters[name] = parameter

    def mean(self, value: Tensor) -> Tensor:
        """Of a number that every process has its own of."""
        if self.share.count == 1:
            return value.detach()
        return self.accelerator.reduce(value.detach().float(), "mean")  # type: ignore[return-value]

    def check_same(self, step: int, what: str) -> None:
        """Refuse processes that would go on from different steps: they do not see the same folder."""
        if self.share.count == 1:
            return
        mine = torch.tensor([step], device=self.device)
        steps: list[int] = self.accelerator.gather(mine).tolist()  # type: ignore[union-attr]
        if len(set(steps)) > 1:
            raise InputError(
                f"{what}: processes found it at steps {steps}; output must be a folder that all of them see"
            )

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def full(value: Any) -> Any:
    """Sharded tensors as whole ones in any nest of dicts and lists; every process has to take part."""
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [full(item) for item in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor cut as a sharded parameter of its shape is; everything else as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    if isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


# Out of memory and disk full, with the numbers: the libraries below say neither what was needed nor what to do.

# torch's CPU allocator, its CUDA one, and numpy: each says how much was asked for, in its own words.
ASKED = re.compile(r"allocate (?P<bytes>\d+) bytes|allocate (?P<size>[\d.]+ \w+)")


@contextmanager
def refusing_out_of_memory(step: int, batch: int, processes: int, device: torch.device) -> Iterator[None]:
    """Turn what an allocator raises inside into a ResourceError; torch's CPU one raises a plain RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in message):
            raise
        found, asked = ASKED.search(message), "more"
        if found:
            asked = f"{int(found['bytes']) >> 20} MiB" if found["bytes"] else found["size"]
        shared = f"batch {batch}" + (f" shared by {processes} processes" if processes > 1 else "")
        raise ResourceError(
            f"out of memory on {device} at step {step}: {shared} asked for {asked}, {_free(device)}; "
            "lower batch; the last state was kept"
        ) from error


@contextmanager
def refusing_full_disk(path: Path, step: int | None, needed_bytes: int) -> Iterator[None]:
    """Turn a write that failed for want of space into a ResourceError; `step` is None before the first."""
    try:
        yield
    except Exception as error:  # each library has its own
        if not ran_out_of_disk(error, path.parent, needed_bytes):
            raise
        free = shutil.disk_usage(path.parent).free
        when = "" if step is None else f" at step {step}"
        raise ResourceError(
            f"{path}: disk full{when}: needs {needed_bytes} bytes, {free} are free; the last state was kept"
        ) from error


def _free(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{free >> 20} of {total >> 20} MiB are free"
    machine = read_machine()
    if machine.memory_bytes is None or machine.memory_available_bytes is None:  # no Linux
        return "there was no more"
    return f"{machine.memory_available_bytes >> 20} of {machine.memory_bytes >> 20} MiB are free"
