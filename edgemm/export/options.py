"""What `edgemm export` is asked for: names, defaults and meaning of every option, said once.  No torch here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemm.errors import UsageError
from edgemm.export.schemes import TARGETS, Scheme, offered_precisions, read_schemes
from edgemm.options import option

__all__ = ["ADAPTABLE", "ADAPTER_RANK", "ExportOptions"]

ADAPTER_RANK = 16  # fixed, as caches are; smaller adapters are filled up with zeros
LOOPS = ("draw", "read", "tokenize")  # of --one-call
ADAPTABLE = {  # component -> its linear layers that may have a low-rank adapter, as PEFT's users name them
    "transformer": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "denoiser": ("qkv_proj", "o_proj", "up_proj", "down_proj"),
}


def _layers(words: str) -> tuple[str, ...]:
    return tuple(filter(None, words.split(",")))


def _precisions() -> str:
    """`cpu: fp32, int8, int4; cuda, jetson-orin: fp16, ...`."""
    found: dict[tuple[str, ...], list[str]] = {}
    for target in TARGETS:
        found.setdefault(offered_precisions(target), []).append(target)
    return "; ".join(f"{', '.join(targets)}: {', '.join(words)}" for words, targets in found.items())


@dataclass(frozen=True)
class ExportOptions:
    """For one target or several."""

    target: str = option(
        "cpu",
        "where it runs, with commas: " + ", ".join(f"{name} ({row.reads})" for name, row in TARGETS.items()),
        metavar="TARGET,...",
    )
    precision: str | None = option(
        None,
        _precisions() + " (default: the first); or one each: cpu=int8,rtx=fp16",
        metavar="PRECISION",
    )
    max_context: int | None = option(
        None,
        "longest conversation, in tokens (default: 2048, or what the transformer was trained for)",
        metavar="SLOTS",
    )
    adapters: Sequence[str] | None = option(
        None,
        "low-rank adapters may be swapped at run time, in these linear layers (default: all usual ones)",
        nargs="?",
        const=(),
        type=_layers,
        metavar="LAYER,...",
    )
    adapter_rank: int = option(ADAPTER_RANK, "the largest rank that NVIDIA's engines take", metavar="R")
    prompt_lookup: bool | None = option(
        None,
        "whether several guessed tokens may be checked in one run (prompt_lookup_num_tokens), on cpu (default: in int8 "
        "and int4, where a reply is the same to the bit)",
        old=("drafts",),
        action=argparse.BooleanOptionalAction,
    )
    cache: Literal["float", "int8"] = option(
        "float", "keys and values on cpu; int8 is a quarter of float, in --precision int8 or int4"
    )
    quant: Path | None = option(
        None,
        "how to quantize: a folder that `edgemm quantize` wrote; --precision then speaks of what stays in float",
        metavar="SPEC",
        type=Path,
    )
    one_call: Sequence[str] = option(
        (),
        "loops that are also written as one graph, for programs without edgemm: draw, read; strings to ids: tokenize",
        metavar="LOOP,...",
        type=_layers,
    )
    steps: int | None = option(None, "num_inference_steps of --one-call draw (default: the model's own)", metavar="N")
    component: Sequence[str] = option(
        (),
        "where a part lies that a model is published without, for example vae=sdxl-vae; may be given again",
        metavar="NAME=FOLDER",
    )
    vae: str | None = option(None, "the same as --component vae=FOLDER", metavar="FOLDER")
    overwrite: bool = option(False, "replace a bundle that stands there")

    def __post_init__(self) -> None:
        schemes = self.schemes
        if self.adapter_rank < 1:
            raise UsageError(f"adapter-rank is {self.adapter_rank}, expected 1 or more")
        known = sorted({name for layers in ADAPTABLE.values() for name in layers})
        for name in self.adapters or ():
            if name not in known:
                raise UsageError(f"adapters names {name!r}, expected some of: {', '.join(known)}")
        if self.adapter_rank != ADAPTER_RANK and self.adapters is None:
            raise UsageError("--adapter-rank says how large adapters may be: give --adapters, too")
        for name in self.one_call:
            if name not in LOOPS:
                raise UsageError(f"--one-call names {name!r}, expected some of: {', '.join(LOOPS)}")
        if self.one_call and self.adapters is not None:
            raise UsageError("--one-call and --adapters do not go together: merge the adapter before you export")
        if self.steps is not None and "draw" not in self.one_call:
            raise UsageError("--steps says how many steps --one-call draw has: give that, too")
        if self.prompt_lookup and not all(scheme.on_cpu for scheme in schemes):
            raise UsageError("--prompt-lookup is for target cpu alone: other runtimes step one token at a time")
        if self.quant and any(scheme.quantize for scheme in schemes):
            raise UsageError(
                "--precision int8, int4, fp8 and nvfp4 quantize by themselves: give that or --quant, not both"
            )
        if self.quant and self.adapters is not None:
            raise UsageError("--quant and --adapters do not go together yet: give one of them")
        able = all(scheme.on_cpu and scheme.quantize for scheme in schemes)
        if self.cache == "int8" and (self.quant or self.adapters is not None or not able):
            raise UsageError(
                "--cache int8 is for target cpu in --precision int8 or int4, without --adapters; a spec says so "
                "itself: edgemm quantize --cache int8"
            )

    def looks_up(self, fits: bool) -> bool:
        """Whether the transformer checks candidates: as was asked, or unasked where it `fits` and bits are the same."""
        return self.prompt_lookup if self.prompt_lookup is not None else fits and self.bits_are_the_same

    @property
    def bits_are_the_same(self) -> bool:
        """Whether a token has the same numbers alone and beside candidates (passes/steady_rows.py): products of float
        numbers add up in another order, those of an adapter too, a spec may leave some in float, and nobody looked at a
        browser's."""
        known = all(scheme.target == "cpu" and scheme.quantize for scheme in self.schemes)
        return known and self.adapters is None and self.cache == "float" and not self.one_call

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        return read_schemes(self.target, self.precision)
