"""Where a bundle can run and what each place takes: target -> dialect, precisions; and a caller's words -> plans."""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError

__all__ = ["TARGETS", "Plan", "Target", "read_plans"]


@dataclass(frozen=True)
class Target:
    dialect: str  # a row of dialects.py; "cpu" has a lowering of its own
    precisions: tuple[str, ...]  # the first one is taken when nobody says otherwise
    reads: str  # what runs the graphs


NVIDIA = ("fp16", "fp32", "int8", "int4")
SMALL_FLOATS = ("fp8", "nvfp4")  # for GPUs that multiply them: edgemm/device/gpu.py says which

TARGETS = {
    "cpu": Target("cpu", ("fp32", "int8", "int4"), "ONNX Runtime"),
    "cuda": Target("standard-24", NVIDIA, "ONNX Runtime CUDA"),
    "rtx": Target("standard-24", (*NVIDIA, *SMALL_FLOATS, "nvfp4-weights"), "TensorRT for RTX"),
    "jetson-orin-jp6": Target("portable-21", NVIDIA, "TensorRT 10.3, JetPack 6"),
    "jetson-orin": Target("standard-24", NVIDIA, "TensorRT 10.16, JetPack 7.2"),
    "jetson-thor": Target("standard-24", NVIDIA + SMALL_FLOATS, "TensorRT 10.13 and newer, JetPack 7"),
}


@dataclass(frozen=True)
class Plan:
    """One target and the precision that it is to have."""

    target: str
    precision: str

    @property
    def dialect(self) -> str:
        return TARGETS[self.target].dialect

    @property
    def quantizes(self) -> bool:
        """By a spec: a CPU's int8 and int4 are a lowering of its own."""
        return self.dialect != "cpu" and self.precision not in ("fp16", "fp32")

    @property
    def real(self) -> str:
        """The precision of what is not quantized."""
        return "fp16" if self.quantizes else self.precision


def read_plans(targets: str, precision: str | None) -> tuple[Plan, ...]:
    """`targets` is "cpu,rtx"; `precision` is one for all, "cpu=int8,rtx=fp16", or None for each target's own."""
    names = list(dict.fromkeys(filter(None, targets.split(","))))
    for name in names:
        if name not in TARGETS:
            raise UsageError(f"target {name!r} is none of: {', '.join(TARGETS)}")
    if not names:
        raise UsageError(f"no target is named, expected some of: {', '.join(TARGETS)}")
    asked = _read_precisions(names, precision)
    for name in names:
        if asked[name] not in TARGETS[name].precisions:
            raise UsageError(
                f"precision {asked[name]!r} is none of what target {name} has: {', '.join(TARGETS[name].precisions)}"
                + (f"; it has no kernels for {asked[name]}" if asked[name].startswith(SMALL_FLOATS) else "")
                + (f"; one a target: --precision {names[0]}=...,{names[1]}=..." if len(names) > 1 else "")
            )
    return tuple(Plan(name, asked[name]) for name in names)


def _read_precisions(names: list[str], precision: str | None) -> dict[str, str]:
    own = {name: TARGETS[name].precisions[0] for name in names}
    if precision is None:
        return own
    if "=" not in precision:
        return dict.fromkeys(names, precision)
    for pair in precision.split(","):
        name, _, value = pair.partition("=")
        if name not in own:
            raise UsageError(f"precision is given for {name!r}, and the targets are: {', '.join(names)}")
        own[name] = value
    return own
