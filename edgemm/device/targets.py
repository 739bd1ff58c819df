"""Which bundle targets run on this machine, and what would make the others run.

Judges what machine.py, gpu.py and providers.py found, and which packages are installed; it looks at nothing else.  A
target runs when its engine is installed, was seen to work, and edgemm has a backend for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgemm.device.fatbin import CudaCode
from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.device.machine import Board, read_fact
from edgemm.device.providers import Provider

__all__ = [
    "EXTRAS",
    "Extra",
    "Findings",
    "Verdict",
    "driver_advice",
    "find_system_tensorrt",
    "installed_version",
    "is_rtx",
    "judge",
    "read_extra",
    "rtx_cuda",
]

ON_JETSON = (
    "sudo apt-get install nvidia-jetpack, then make the environment with: python3 -m venv --system-site-packages"
)
RTX_OLDEST = (7, 5)  # compute capability
TENSORRT_OLDEST = {"jetson-orin-jp6": (10, 3), "jetson-orin": (10, 15), "jetson-thor": (10, 15)}  # for the dialect
NEEDED = ("tokenizers", "pillow")  # of what every runtime extra brings: without these nothing is read or drawn
NOT_TRIED = "not tried on a device yet"


def find_system_tensorrt(root: Path = Path("/")) -> Path | None:
    """JetPack installs it for the system's own Python; an environment sees it when it was made to."""
    return next(iter(sorted((root / "usr/lib").glob("python3*/dist-packages/tensorrt"))), None)


def driver_advice(root: Path = Path("/")) -> str:
    """What brings libcuda.so.1 to a machine that shows an NVIDIA card without it; "" where no card shows."""
    if "microsoft" in read_fact(root / "proc/sys/kernel/osrelease").lower():
        return "on WSL2 the card's driver for Windows brings it, in /usr/lib/wsl/lib: update that one, in Windows"
    if read_fact(root / "proc/driver/nvidia/version"):
        return "the kernel has NVIDIA's driver, and this system not its libraries: start a container with --gpus all"
    cards = (folder for folder in (root / "sys/bus/pci/devices").glob("*") if read_fact(folder / "vendor") == "0x10de")
    shown = any(read_fact(folder / "class").startswith("0x03") for folder in cards)
    return "an NVIDIA card is here: install NVIDIA's driver for it" if shown else ""


def rtx_cuda() -> int | None:
    """The CUDA that the installed TensorRT for RTX is made for, by the name of its wheel."""
    return next((major for major in (12, 13, 14) if installed_version(f"tensorrt-rtx-cu{major}")), None)


@dataclass(frozen=True)
class Findings:
    board: Board | None
    cuda: CudaDriver
    providers: tuple[Provider, ...]
    extras: dict[str, Extra]
    system_tensorrt: Path | None = None  # where JetPack put TensorRT's Python module, seen from here or not
    cuda_code: CudaCode | None = None  # that the installed onnxruntime-gpu holds
    driver_cure: str = ""  # what brings a CUDA driver, where a card shows without one
    rtx_cuda: int | None = None  # that the installed TensorRT for RTX is made for


@dataclass(frozen=True)
class Verdict:
    target: str
    engine: str  # what runs it here; "" when nothing does
    problem: str  # why it does not run; "" when it does
    cure: str  # what to do about it; "" when nothing on this machine would help
    newest_opset: int | None = None  # of graphs that the engine reads; None when it was not asked

    @property
    def runs(self) -> bool:
        return not self.problem


def judge(found: Findings) -> tuple[Verdict, ...]:
    """One verdict a target, in the order of the table."""
    return tuple(rule(target, found) for target, rule in RULES.items())


def _onnxruntime(target: str, found: Findings, provider: str, extra: Extra) -> Verdict:
    seen = {item.name: item for item in found.providers}.get(provider)
    if seen is None:
        return Verdict(
            target, "", f"no ONNX Runtime with {provider}", extra.cure or f"pip install 'edgemm[{extra.name}]'"
        )
    if seen.problem:
        cure = extra.cure
        if "driver version is insufficient" in seen.problem:  # CUDA's error 35
            cure = _newer_driver(found)
        elif "cannot open shared object file" in seen.problem:  # the extra brings CUDA's and cuDNN's, as wheels
            cure = cure or f"pip install 'edgemm[{extra.name}]'"
        return Verdict(target, "", f"{provider}: {seen.problem}", cure)
    lacking = [package for package in NEEDED if package in extra.missing]
    if lacking:
        return Verdict(target, "", f"missing: {', '.join(lacking)}", f"pip install {' '.join(lacking)}")
    return Verdict(target, f"ONNX Runtime, {provider}", "", "", seen.newest_opset)


def _newer_driver(found: Findings) -> str:
    return f"update NVIDIA's driver: this one runs up to CUDA {found.cuda.version}"


def _cpu(target: str, found: Findings) -> Verdict:
    return _onnxruntime(target, found, "CPUExecutionProvider", found.extras["ort"])


def _cuda(target: str, found: Findings) -> Verdict:
    board, code = found.board, found.cuda_code
    instead = f"export the bundle with --target {(board and board.target) or 'cpu'}"
    if board and (code is None or not code.runs_on(board.compute_capability, on_tegra=True)):
        held = f" (the installed one holds {code})" if code else ""
        problem = f"onnxruntime-gpu of PyPI has no code for a Jetson's SM {board.compute_capability}{held}"
        return Verdict(target, "", problem, instead)
    if not found.cuda.gpus:
        return Verdict(target, "", found.cuda.problem, found.driver_cure)
    capability = found.cuda.gpus[0].compute_capability
    if code and not code.runs_on(capability, board is not None):
        problem = f"the installed onnxruntime-gpu holds code for SM {code}, this GPU is {capability}"
        return Verdict(target, "", problem, f"pip install -U onnxruntime-gpu, or {instead}")
    return _onnxruntime(target, found, "CUDAExecutionProvider", found.extras["cuda"])


def _jetson(target: str, found: Findings) -> Verdict:
    if found.board is None:
        return Verdict(target, "", "this machine is no Jetson", "")
    if found.board.target != target:
        return Verdict(target, "", *_other_board(found.board))
    version = found.extras["tensorrt"].versions.get("tensorrt")
    if version is None and found.system_tensorrt:
        problem = f"this environment does not look into {found.system_tensorrt.parent}, where JetPack's TensorRT is"
        return Verdict(target, "", problem, "python3 -m venv --system-site-packages .venv, and install edgemm there")
    if version is None:
        return Verdict(target, "", "TensorRT's Python module is not there", ON_JETSON)
    lacking = [package for package in NEEDED if package in found.extras["tensorrt"].missing]
    if lacking:
        return Verdict(target, "", f"missing: {', '.join(lacking)}", "pip install 'edgemm[ort]'")
    oldest = TENSORRT_OLDEST[target]
    if tuple(map(int, version.split(".")[:2])) < oldest:
        problem = f"TensorRT {version} is here, {target} needs {'.'.join(map(str, oldest))} or newer"
        return Verdict(target, "", problem, "a newer JetPack brings it")
    return Verdict(target, f"TensorRT {version}, {NOT_TRIED}", "", "")


def _other_board(board: Board) -> tuple[str, str]:
    """Why a board does not take a target, and what to do about it."""
    if board.target:
        return f"this board takes {board.target}", ""
    system = f"JetPack {board.jetpack}" if board.jetpack else f"Linux for Tegra {board.l4t or 'of no release file'}"
    cure = "JetPack 6.2 or 7.2 has one" if board.soc == "Orin" else ""
    return f"no target is made for {board.soc} with {system}", cure


def is_rtx(gpu: Gpu) -> bool:
    return tuple(map(int, gpu.compute_capability.split("."))) >= RTX_OLDEST


def _rtx(target: str, found: Findings) -> Verdict:
    extra, gpus = found.extras["tensorrt-rtx"], found.cuda.gpus
    if found.board:
        return Verdict(target, "", "TensorRT for RTX is not for Jetsons", "")
    if not gpus:
        return Verdict(target, "", found.cuda.problem, found.driver_cure)
    capable = list(map(is_rtx, gpus))
    if not capable[0]:
        problem = f"no RTX GPU (compute capability 7.5 or newer): {gpus[0].name} has {gpus[0].compute_capability}"
        return Verdict(target, "", problem, f"--device rtx:{capable.index(True)}" if any(capable) else "")
    lacking = [package for package in ("tensorrt-rtx", *NEEDED) if package in extra.missing]
    if lacking:
        return Verdict(target, "", f"missing: {', '.join(lacking)}", extra.cure)
    if found.rtx_cuda and int((found.cuda.version or "0").partition(".")[0]) < found.rtx_cuda:
        return Verdict(target, "", f"TensorRT for RTX here is made for CUDA {found.rtx_cuda}", _newer_driver(found))
    return Verdict(target, f"TensorRT for RTX {extra.versions['tensorrt-rtx']}, {NOT_TRIED}", "", "")


RULES: dict[str, Callable[[str, Findings], Verdict]] = {
    "cpu": _cpu,
    "web": _cpu,
    "cuda": _cuda,
    "jetson-orin-jp6": _jetson,
    "jetson-orin": _jetson,
    "jetson-thor": _jetson,
    "rtx": _rtx,
}


# Which of edgemm's extras are complete here, and the line that completes one.
#
# Reads installed metadata; nothing is imported, so asking is cheap and cannot crash.

RUNTIME = ("tokenizers", "safetensors", "pillow", "tqdm")  # beside any backend
# The same names as in pyproject.toml, which an installed package cannot read; a test compares the two.
EXTRAS = {
    "ort": ("onnxruntime", *RUNTIME),
    "cuda": ("onnxruntime-gpu", *RUNTIME, "nvidia-ml-py"),
    "openvino": ("openvino", "onnxruntime", *RUNTIME),
    "tensorrt": ("tensorrt", *RUNTIME),
    "tensorrt-rtx": ("tensorrt-rtx", *RUNTIME, "nvidia-ml-py"),
    "video": ("av",),
    "energy": ("nvidia-ml-py",),
    "tokenizer-graph": ("onnxruntime-extensions",),
    "serve": (
        "onnxruntime",
        *RUNTIME,
        "starlette",
        "uvicorn",
        "python-multipart",
        "prometheus-client",
        "pydantic",
    ),
    "data": ("resvg_py", "cairosvg", "pillow", "tqdm"),
    "train": ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "gguf", "pillow", "tqdm"),
    "quantize": ("bitsandbytes",),
    "loadgen": ("mlcommons-loadgen",),
    "constrained": ("llguidance",),
    "families": ("transformers", "jinja2"),  # and export's
    "optimum": ("optimum",),
    "export": (
        "onnx",
        "onnxscript",
        "onnx-ir",
        "onnxruntime",
        "torch",
        "safetensors",
        "tokenizers",
        "pillow",
        "ml_dtypes",
        "gguf",
        "tqdm",
    ),
}
# By itself, because as a dependency it brings several GB of CUDA libraries; uv looks for a GPU and takes the CPU build
# where there is none.
TORCH_FIRST = "pip install uv && python -m uv pip install --torch-backend=auto torch==2.13.0"
RIVALS = {"cuda": "onnxruntime", "ort": "onnxruntime-gpu"}  # extra -> package that owns the same import name


@dataclass(frozen=True)
class Extra:
    name: str
    versions: dict[str, str]  # of the packages that are here
    missing: tuple[str, ...]
    rival: str | None = None  # an installed package that would own the same import name
    instead: str = ""  # of pip's line, on this board

    @property
    def cure(self) -> str:
        """The exact line that completes it; "" when it is complete."""
        if not self.missing:
            return ""
        if self.instead:
            return self.instead
        first = [f"pip uninstall -y {self.rival}"] if self.rival else []
        torch = [TORCH_FIRST] if "torch" in self.missing else []
        return " && ".join([*first, *torch, f"pip install 'edgemm[{self.name}]'"])


def read_extra(name: str, board: Board | None = None) -> Extra:
    found = {package: installed_version(package) for package in EXTRAS[name]}
    rival = RIVALS.get(name)
    return Extra(
        name=name,
        versions={package: version for package, version in found.items() if version},
        missing=tuple(package for package, version in found.items() if not version),
        rival=rival if rival and installed_version(rival) else None,
        instead=_on_a_board(name, found) if board else "",
    )


def _on_a_board(name: str, found: Mapping[str, str | None]) -> str:
    if name == "tensorrt" and not found["tensorrt"]:
        return ON_JETSON
    return "not for a Jetson" if name in ("cuda", "tensorrt-rtx") else ""


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
