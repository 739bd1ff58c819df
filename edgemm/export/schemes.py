"""What a precision means at a target: one table, which specs, lowerings, sizes and --help follow; and a caller's words.

A CPU's int8 is w8a8, whole numbers on both sides of a product, so the transformer is smoothed for it by a page of
shipped text, which takes seconds (docs/quantize.md); so is its int4, where drawing reads.  TensorRT gets forms that it
has kernels for: 8 bits a channel or 4 bits in blocks, without zero-points, and int8 inputs of conditioner and denoiser
by ranges seen while shipped prompts were drawn; with fp8 all inputs are fp8, by ranges of shipped text and prompts.
ONNX Runtime CUDA multiplies int8 on the CPU only, so there drawing stays in float16.  A browser's wasm has no fast
kernel for blocks (benchmarks/web_forms.py: a token 16 to 30 times later than in float32), and 8 bits of inputs make its
picture another than a CPU's: there drawing is MatMulInteger in two terms, and reading unpacks its weights once.
Which layers a word leaves finer is in edgemm/quantize/layers.py, which GPUs multiply small floats in
edgemm/device/gpu.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.options import parse_pairs
from edgemm.quantize.options import QuantizeOptions

__all__ = ["SCHEMES", "TARGETS", "Scheme", "Target", "offered_precisions", "read_schemes"]


@dataclass(frozen=True)
class Target:
    dialect: str  # a row of dialects.py; "cpu" and "web" have operators of their own
    lowering: str  # of a spec: lower_cpu.py, lower_cuda.py or lower_tensorrt.py
    reads: str  # what runs the graphs


TARGETS = {
    "cpu": Target("cpu", "cpu", "ONNX Runtime"),
    "web": Target("web", "cpu", "onnxruntime-web"),
    "cuda": Target("standard-24", "cuda", "ONNX Runtime CUDA"),
    "rtx": Target("standard-24", "tensorrt", "TensorRT for RTX"),
    "jetson-orin-jp6": Target("portable-21", "tensorrt", "TensorRT 10.3, JetPack 6"),
    "jetson-orin": Target("standard-24", "tensorrt", "TensorRT 10.16, JetPack 7.2"),
    "jetson-thor": Target("standard-24", "tensorrt", "TensorRT 10.13 and newer, JetPack 7"),
}


@dataclass(frozen=True)
class Scheme:
    """One precision at one target."""

    target: str
    precision: str
    real: str  # the precision of what is not quantized: fp32 or fp16
    quantize: QuantizeOptions | None = None  # None: nothing is

    @property
    def on_cpu(self) -> bool:
        return self.lowering == "cpu"

    @property
    def smooths_text(self) -> bool:
        """Inputs of the transformer's products have one scale a token, and norms may make them easier to round."""
        asked = self.quantize
        return asked is not None and asked.text == "w8a8" and asked.methods.get("text") == "smoothquant"

    @property
    def dialect(self) -> str:
        return TARGETS[self.target].dialect

    @property
    def lowering(self) -> str:
        return TARGETS[self.target].lowering


TENSORRT = tuple(name for name, target in TARGETS.items() if target.lowering == "tensorrt")
SMALL_FLOATS = ("rtx", "jetson-thor")  # whose GPUs multiply them


def _cuda(text: str, draw: str, portable: bool = False) -> QuantizeOptions:
    return QuantizeOptions(text, draw, method="", samples=8, portable=portable)


def _tensorrt(text: str, draw: str) -> QuantizeOptions:
    return _cuda(text, draw, portable=True)


# targets, precision, what stays in float, and how the rest is quantized; a target's first row is its default.
_ROWS: tuple[tuple[tuple[str, ...], str, str, QuantizeOptions | None], ...] = (
    (("web",), "int8", "fp32", QuantizeOptions("int8-web", "int8", "")),
    (("cpu", "web"), "fp32", "fp32", None),
    (("cpu",), "int8", "fp32", QuantizeOptions("w8a8", "int8", "text=smoothquant,draw=")),
    (("cpu",), "int4", "fp32", QuantizeOptions("int4-w8a8", "int8", "text=smoothquant,draw=")),
    (("cuda", *TENSORRT), "fp16", "fp16", None),
    (("cuda", *TENSORRT), "fp32", "fp32", None),
    (("cuda",), "int8", "fp16", _cuda("int8", "fp16")),
    (("cuda",), "int4", "fp16", _cuda("int4", "fp16")),
    (TENSORRT, "int8", "fp16", _tensorrt("int8", "int8")),
    (TENSORRT, "int4", "fp16", _tensorrt("int4", "int8")),
    (SMALL_FLOATS, "fp8", "fp16", _tensorrt("fp8", "fp8")),
    (SMALL_FLOATS, "nvfp4", "fp16", _tensorrt("nvfp4", "fp8")),
    (("rtx",), "nvfp4-weights", "fp16", _tensorrt("nvfp4-weights", "fp8")),
)
SCHEMES = {
    (target, precision): Scheme(target, precision, real, quantize)
    for targets, precision, real, quantize in _ROWS
    for target in targets
}


def offered_precisions(target: str) -> tuple[str, ...]:
    """The first one is taken when nobody says otherwise."""
    return tuple(precision for place, precision in SCHEMES if place == target)


def read_schemes(targets: str, precision: str | None) -> tuple[Scheme, ...]:
    """`targets` is "cpu,rtx"; `precision` is one for all, "cpu=int8,rtx=fp16", or None for each target's own."""
    names = list(dict.fromkeys(filter(None, targets.split(","))))
    for name in names:
        if name not in TARGETS:
            raise UsageError(f"target {name!r} is none of: {', '.join(TARGETS)}")
    if not names:
        raise UsageError(f"no target is named, expected some of: {', '.join(TARGETS)}")
    asked = _read_precisions(names, precision)
    for name, word in asked.items():
        if (name, word) not in SCHEMES:
            raise UsageError(
                f"precision {word!r} is none of what target {name} has: {', '.join(offered_precisions(name))}"
                + (f"; it has no kernels for {word}" if word.startswith(("fp8", "nvfp4")) else "")
                + (f"; one a target: --precision {names[0]}=...,{names[1]}=..." if len(names) > 1 else "")
            )
    return tuple(SCHEMES[name, word] for name, word in asked.items())


def _read_precisions(names: list[str], precision: str | None) -> dict[str, str]:
    if precision is None or "=" in precision:
        asked = {name: offered_precisions(name)[0] for name in names}
    else:
        return dict.fromkeys(names, precision)
    for name, value in parse_pairs("--precision", precision).items() if precision else ():
        if name not in asked:
            raise UsageError(f"precision is given for {name!r}, and the targets are: {', '.join(names)}")
        asked[name] = value
    return asked
