"""The devices that `edgemm estimate` knows, as their makers describe them: nothing here was measured by us.

What a device really reaches of these figures is calibration.py's business.  A mode is listed only where its memory and
GPU figures could be cited; the first one is the default.  Peaks are dense (no sparsity), in powers of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError

__all__ = ["DEVICES", "Device", "PowerMode", "device_of", "find_device"]


@dataclass(frozen=True)
class PowerMode:
    name: str  # nvpmodel's name on a Jetson
    memory_gb_s: float
    fp16_tflops: float  # tensor cores
    int8_tops: float

    def __post_init__(self) -> None:
        for field in ("memory_gb_s", "fp16_tflops", "int8_tops"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} of {self.name!r} is {getattr(self, field)}, expected more than 0")


@dataclass(frozen=True)
class Device:
    title: str
    architecture: str  # of its GPU: what a layer costs is shared within one
    targets: tuple[str, ...]  # the bundle targets made for it, the first is counted where a bundle has several
    multiprocessors: int
    memory_gb: float
    system_gb: float  # of that, what the system and a desktop keep; a guess
    modes: tuple[PowerMode, ...]
    source: str  # of the figures
    board: str | None = None  # in a Jetson's device tree; None has no such file

    def mode(self, name: str | None) -> PowerMode:
        known = {mode.name.lower(): mode for mode in self.modes}
        if name is None:
            return self.modes[0]
        if name.lower() not in known:
            raise UsageError(f"no power mode {name!r} of {self.title}; known: {', '.join(m.name for m in self.modes)}")
        return known[name.lower()]

    def layer_clock(self, mode: PowerMode) -> float:
        """Grows with the GPU's clock within an architecture: peak operations of one multiprocessor."""
        return mode.fp16_tflops / self.multiprocessors


ORIN = "NVIDIA Jetson Orin module data sheets"
THOR = "NVIDIA Jetson Thor series modules data sheet"
ADA = "NVIDIA Ada GPU architecture whitepaper"
RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"

ORIN_TARGETS = ("jetson-orin", "jetson-orin-jp6")  # of JetPack 7 and of JetPack 6

DEVICES = {
    "orin-nano-8gb": Device(
        title="Jetson Orin Nano 8 GB",
        architecture="orin",
        targets=ORIN_TARGETS,
        multiprocessors=8,
        memory_gb=8,
        system_gb=1.5,
        modes=(PowerMode("15W", 68, 10, 20), PowerMode("MAXN_SUPER", 102, 17, 33)),
        source=ORIN,
        board="Orin Nano",
    ),
    "orin-nx-16gb": Device(
        title="Jetson Orin NX 16 GB",
        architecture="orin",
        targets=ORIN_TARGETS,
        multiprocessors=8,
        memory_gb=16,
        system_gb=1.5,
        modes=(PowerMode("MAXN", 102, 15, 30), PowerMode("MAXN_SUPER", 102, 19, 38)),
        source=ORIN,
        board="Orin NX",
    ),
    "agx-orin-64gb": Device(
        title="Jetson AGX Orin 64 GB",
        architecture="orin",
        targets=ORIN_TARGETS,
        multiprocessors=16,
        memory_gb=64,
        system_gb=2,
        modes=(PowerMode("MAXN", 205, 43, 85),),
        source=ORIN,
        board="AGX Orin",
    ),
    "thor-t4000": Device(
        title="Jetson Thor T4000",
        architecture="thor",
        targets=("jetson-thor",),
        multiprocessors=12,
        memory_gb=64,
        system_gb=2,
        modes=(PowerMode("MAXN", 273, 150, 300),),
        source=THOR,
        board="T4000",
    ),
    "thor-t5000": Device(
        title="Jetson AGX Thor (T5000)",
        architecture="thor",
        targets=("jetson-thor",),
        multiprocessors=20,
        memory_gb=128,
        system_gb=2,
        modes=(PowerMode("MAXN", 273, 258, 517),),
        source=THOR,
        board="Thor",
    ),
    "rtx-4090": Device(
        title="GeForce RTX 4090",
        architecture="ada",
        targets=("rtx",),
        multiprocessors=128,
        memory_gb=24,
        system_gb=1,
        modes=(PowerMode("450W", 1008, 165, 660),),
        source=ADA,
    ),
    "rtx-5090": Device(
        title="GeForce RTX 5090",
        architecture="blackwell",
        targets=("rtx",),
        multiprocessors=170,
        memory_gb=32,
        system_gb=1,
        modes=(PowerMode("575W", 1792, 210, 838),),
        source=RTX_BLACKWELL,
    ),
    "h200": Device(
        title="H200",
        architecture="hopper",
        targets=("cuda",),
        multiprocessors=132,
        memory_gb=141,
        system_gb=1,
        modes=(PowerMode("700W", 4800, 989, 1979),),
        source="NVIDIA H200 Tensor Core GPU data sheet, halved where it counts sparsity",
    ),
}


def device_of(board: str) -> str:
    """The device whose board a device tree names so; UsageError where none is known."""
    for name, device in DEVICES.items():
        if device.board and device.board in board:
            return name
    raise UsageError(f"{board!r} is none of the boards that are known; give --device (edgemm estimate --list)")


def find_device(name: str) -> Device:
    if name not in DEVICES:
        raise UsageError(f"unknown device {name!r}; known: {', '.join(DEVICES)} (edgemm estimate --list)")
    return DEVICES[name]
