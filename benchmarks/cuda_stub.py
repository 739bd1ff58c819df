"""Empty CUDA libraries, made of the names that onnxruntime-gpu asks for: it loads, partitions and binds, with no GPU.

Memory is the process's own, so copies are real; kernels compute nothing.  What is opened is counted until it is closed
(streams, graphs, events, memory), and CUDA's own refusals that a library may run into are kept, thread by thread:
waiting for or asking about a captured stream or its device, allocating, freeing or asking about an event in a thread
that captures (error 900), a graph that is gone, a device that is not there.  What another thread puts on a captured
stream is counted as a stray.  Made with the machine's C compiler at run time; none of NVIDIA's code is in it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

__all__ = ["COUNTS", "make_stubs"]

COUNTS = (
    "graphs",
    "launches",
    "streams",
    "events",
    "device_memory",
    "pinned_memory",
    "copies",
    "captured_copies",
    "refusals",
    "kernels",
    "strays",
    "tf32",
)
PRODUCTS = r"^cublas(LtMatmul|[A-Z]gemm\w*|Gemm\w*)$"  # which launch kernels of their own
DLOPENED = ("libcudnn.so.9", "libcufft.so.12", "libnvrtc.so.13")

SOURCE = Path(__file__).with_suffix(".c")


def make_stubs(provider: Path, folder: Path, sm: str = "8.9") -> Path:
    """Libraries of the names that `provider` needs or looks for, in `folder`, of a GPU of that compute capability."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = _names(["readelf", "-d", str(provider)], r"NEEDED.*\[(libcu\w+\.so\.\d+)\]")
    linked = _names(["nm", "-D", "--undefined-only", str(provider)], r" ((?:__cuda|cuda|cublas|curand|cuTensor)\w+)")
    looked_for = _names(["strings", "-n", "6", str(provider)], r"(?m)^((?:cudnn|cufft|nvrtc)[A-Z]\w+)$")
    source = SOURCE.read_text()
    known = set(re.findall(r"\b(\w+)\(", source))
    empty = "".join(
        f"int {name}(void) {{ {'n.kernels++; ' if re.search(PRODUCTS, name) else ''}return 0; }}\n"
        for name in sorted({*linked, *looked_for} - known)
    )
    (folder / "stub.c").write_text(source + empty)
    whole = next(name for name in needed if name.startswith("libcudart"))
    major, _, minor = sm.partition(".")
    _compile(folder, whole, "stub.c", f"-DSM_MAJOR={major}", f"-DSM_MINOR={minor or 0}")
    for name in {*needed, *DLOPENED} - {whole}:
        _compile(folder, name, whole)  # all names are in one library, and the others lead to it
    return folder


def _compile(folder: Path, name: str, source: str, *flags: str) -> None:
    command = ["cc", "-shared", "-fPIC", "-w", "-O1", *flags, f"-Wl,-soname,{name},--no-as-needed", "-o", name, source]
    subprocess.run([*command, "-Wl,-rpath,$ORIGIN"], cwd=folder, check=True)


def _names(command: list[str], pattern: str) -> list[str]:
    return re.findall(pattern, subprocess.run(command, capture_output=True, text=True, check=True).stdout)
