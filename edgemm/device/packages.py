"""Which of edgemm's extras are complete here, and the line that completes one.

Reads installed metadata; nothing is imported, so asking is cheap and cannot crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

__all__ = ["EXTRAS", "Extra", "installed_version", "read_extra"]

RUNTIME = ("tokenizers", "safetensors", "pillow", "tqdm")  # beside any backend
# The same names as in pyproject.toml, which an installed package cannot read; a test compares the two.
EXTRAS = {
    "ort": ("onnxruntime", *RUNTIME),
    "cuda": ("onnxruntime-gpu", *RUNTIME, "nvidia-ml-py"),
    "openvino": ("openvino", "onnxruntime", *RUNTIME),
    "tensorrt": ("tensorrt", *RUNTIME),
    "tensorrt-rtx": ("tensorrt-rtx", *RUNTIME, "nvidia-ml-py"),
    "energy": ("nvidia-ml-py",),
    "serve": ("onnxruntime", *RUNTIME),
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

    @property
    def cure(self) -> str:
        """The exact line that completes it; "" when it is complete."""
        if not self.missing:
            return ""
        first = [f"pip uninstall -y {self.rival}"] if self.rival else []
        torch = [TORCH_FIRST] if "torch" in self.missing else []
        return " && ".join([*first, *torch, f"pip install 'edgemm[{self.name}]'"])


def read_extra(name: str) -> Extra:
    found = {package: installed_version(package) for package in EXTRAS[name]}
    rival = RIVALS.get(name)
    return Extra(
        name=name,
        versions={package: version for package, version in found.items() if version},
        missing=tuple(package for package, version in found.items() if not version),
        rival=rival if rival and installed_version(rival) else None,
    )


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
