"""For which GPUs a CUDA library holds code, read from its file: nothing of it is loaded, no tool of NVIDIA's is needed.

A wheel installs wherever its processor and its Python fit, whatever GPU is there, and fails at its first kernel.  The
layout is that of the `.nv_fatbin` section as cuobjdump prints it: containers of a 16-byte header, then entries, each
machine code (a cubin) or PTX for one compute capability.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["CUDA_PROVIDER", "CudaCode", "find_cuda_code", "read_cuda_code"]

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
ENTRY = struct.Struct("<HHIQ")  # kind, -, bytes of this header, bytes of the code
PTX, CUBIN, ARCH_AT = 1, 2, 28
TEGRA = (53, 62, 72, 87, 101, 110)  # whose machine code is for Jetsons alone
CUDA_PROVIDER = "capi/libonnxruntime_providers_cuda.so"  # of onnxruntime-gpu


@dataclass(frozen=True)
class CudaCode:
    """Compute capabilities as numbers: 89 for 8.9."""

    cubins: tuple[int, ...]
    ptx: tuple[int, ...] = ()

    def runs_on(self, compute_capability: str, on_tegra: bool = False) -> bool:
        """Machine code runs on its own capability and on higher ones of its major, but never across between PCs and
        Jetsons; PTX is compiled for any that is not older (CUDA programming guide, binary compatibility)."""
        major, _, minor = compute_capability.partition(".")
        found = int(major) * 10 + int(minor or 0)
        older = [sm for sm in self.cubins if sm < found and sm // 10 == found // 10 and sm not in TEGRA]
        return found in self.cubins or (bool(older) and not on_tegra) or any(sm <= found for sm in self.ptx)

    def __str__(self) -> str:
        named = [f"{sm // 10}.{sm % 10}" for sm in self.cubins] + [f"PTX {sm // 10}.{sm % 10}" for sm in self.ptx]
        return ", ".join(named)


def find_cuda_code() -> CudaCode | None:
    """Of the onnxruntime-gpu that is installed; None where there is none, or no code is found in it."""
    try:
        spec = find_spec("onnxruntime")
    except (ImportError, ValueError):
        return None
    folders = spec.submodule_search_locations if spec else None
    library = Path(next(iter(folders or ("",)))) / CUDA_PROVIDER
    return read_cuda_code(library) if library.is_file() else None


def read_cuda_code(library: Path) -> CudaCode | None:
    found: set[tuple[int, int]] = set()
    if not library.stat().st_size:  # of a copy that was cut short
        return None
    with open(library, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(MAGIC)
        while at >= 0:
            end = _read_container(data, at, found)
            at = data.find(MAGIC, end)
    sms = {kind: tuple(sorted({sm for k, sm in found if k == kind})) for kind in (CUBIN, PTX)}
    return CudaCode(sms[CUBIN], sms[PTX]) if found else None


def _read_container(data: mmap.mmap, at: int, found: set[tuple[int, int]]) -> int:
    """Where to look on; the same four bytes may stand there by chance."""
    size = len(data)
    if at + HEADER.size > size:
        return size
    _, _, header, entries = HEADER.unpack_from(data, at)
    end = at + header + entries
    if header != HEADER.size or end > size:
        return at + len(MAGIC)
    at += header
    while at + ARCH_AT + 4 <= end:
        kind, _, header, code = ENTRY.unpack_from(data, at)
        if kind not in (PTX, CUBIN) or not header:
            break
        found.add((kind, struct.unpack_from("<I", data, at + ARCH_AT)[0]))
        at += header + code
    return end
