"""What each linear layer gets to see while calibration data runs through the model.

Layers that read the same activation (q, k and v; gate and up) share one record, under the first one's name.
Axes: k input channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgemm.errors import InputError

__all__ = ["Inputs", "Record", "reader_of"]

FIRST = (
    (r"\.self_attn\.[kv]_proj$", ".self_attn.q_proj"),
    (r"\.mlp\.up_proj$", ".mlp.gate_proj"),
    (r"^transformer\.embed_tokens(\.rest)?$", "transformer.head"),  # no module has that name: calibration.py tells it
)


def reader_of(layer: str) -> str:
    """The layer under whose name the input is recorded."""
    for pattern, first in FIRST:
        layer = re.sub(pattern, first, layer)
    return layer


@dataclass
class Record:
    largest: Tensor  # (k)
    products: Tensor  # (k, k): the sum of x x^T, or (k): of x * x, where nobody asked for more
    rows: int = 0
    by_step: dict[int, float] = field(default_factory=dict)  # denoising step -> the largest input

    def gram(self) -> Tensor:
        return self.products / max(self.rows, 1)

    def squares(self) -> Tensor:
        """Mean square of each channel."""
        return (self.products.diagonal() if self.products.dim() == 2 else self.products) / max(self.rows, 1)


class Inputs:
    """Layer -> Record, filled while `watching`; `step` says which denoising step is running."""

    def __init__(self, layers: Iterable[str], with_gram: Iterable[str] = ()) -> None:
        self.layers = {reader_of(name) for name in layers}
        self.with_gram = {reader_of(name) for name in with_gram}
        self.records: dict[str, Record] = {}
        self.step = 0

    def of(self, layer: str) -> Record:
        """Raises InputError for a layer that the calibration data never reached."""
        if reader_of(layer) not in self.records:
            raise InputError(f"the calibration data never reached {layer}")
        return self.records[reader_of(layer)]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        hooks = [
            part.register_forward_pre_hook(lambda _, args, name=name: self.see(name, args[0]))
            for name, part in model.named_modules()
            if name in self.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def knows(self, layer: str) -> bool:
        return reader_of(layer) in self.records

    def see(self, name: str, x: Tensor) -> None:
        """x (..., k) goes into the layer; nothing where nobody asked for it."""
        name = reader_of(name)
        if name not in self.layers:
            return
        rows = x.detach().flatten(0, -2).float()
        largest = rows.abs().amax(0)
        if not torch.isfinite(largest).all():
            raise InputError(f"the inputs of {name} are not finite on the calibration data")
        wide = name in self.with_gram
        if name not in self.records:
            k = rows.shape[1]
            self.records[name] = Record(torch.zeros(k), torch.zeros((k, k) if wide else k))
        record = self.records[name]
        record.largest = torch.maximum(record.largest, largest)
        record.products += rows.T @ rows if wide else rows.square().sum(0)
        record.rows += len(rows)
        record.by_step[self.step] = max(record.by_step.get(self.step, 0.0), float(largest.max()))
