"""Is there a CUDA driver, and which GPUs does it see?  Asked in a child process: a broken driver may not return.

Only libcuda.so.1, the driver's own library, through ctypes: no CUDA toolkit and no Python package is needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from edgemm.bundle.onnx_file import Outline
from edgemm.device.child import ask

__all__ = [
    "CudaDriver",
    "Gpu",
    "LEAST_SM",
    "gpu_number",
    "gpu_uuid",
    "missing_kernels",
    "missing_precision",
    "probe_cuda",
    "tf32_wanted",
]

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str
    memory_bytes: int
    uuid: str = ""  # "GPU-...": the same to CUDA, whose first is the fastest, and to NVML, which counts by PCI bus


@dataclass(frozen=True)
class CudaDriver:
    version: str | None  # newest CUDA that it runs, for example "13.2"
    gpus: tuple[Gpu, ...]
    problem: str  # why there is none; "" when there is one


def probe_cuda(timeout_s: float = 30.0) -> CudaDriver:
    """Never raises and never hangs."""
    answer = ask("edgemm.device.gpu", timeout_s=timeout_s)
    if answer.value is None:
        return CudaDriver(None, (), f"asking the CUDA driver {answer.problem}")
    gpus = tuple(Gpu(**gpu) for gpu in answer.value["gpus"])
    return CudaDriver(answer.value["version"], gpus, answer.value["problem"])


@cache
def gpu_uuid(number: int) -> str:
    """Of CUDA's GPU of that number; "" where there is none or its driver is too old to tell."""
    gpus = probe_cuda().gpus
    return gpus[number].uuid if number < len(gpus) else ""


def gpu_number(device: str) -> int:
    """1 of "cuda:1"; 0 where no number is said."""
    number = device.partition(":")[2]
    return int(number) if number else 0


def tf32_wanted() -> bool:
    """EDGEMM_TF32=1 lets float32 products round their inputs to 10 bits: faster, and further from what was compared."""
    return os.environ.get("EDGEMM_TF32", "0") == "1"


def _ask_driver() -> dict[str, object]:
    nothing: dict[str, object] = {"version": None, "gpus": []}
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {**nothing, "problem": "no CUDA driver: libcuda.so.1 is not on this machine"}
    status = driver.cuInit(0)
    if status:
        return {
            **nothing,
            "problem": f"the CUDA driver does not start: cuInit returns {status} ({_name(driver, status)})",
        }
    number, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    gpus = [_describe(driver, index) for index in range(count.value)]
    return {"version": version, "gpus": gpus, "problem": "" if gpus else "the CUDA driver sees no GPU"}


def _describe(driver: ctypes.CDLL, index: int) -> dict[str, object]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    told = (ctypes.c_uint8 * 16)()
    ask = getattr(driver, "cuDeviceGetUuid_v2", None) or getattr(driver, "cuDeviceGetUuid", None)
    known = ask is not None and ask(told, device) == 0
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "memory_bytes": memory.value,
        "uuid": f"GPU-{uuid.UUID(bytes=bytes(told))}" if known else "",
    }


def _name(driver: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(text))
    return (text.value or b"unknown error").decode(errors="replace")


# Which GPUs multiply which numbers: a graph held against a compute capability, before minutes of building.
#
# NVIDIA's builder may take small floats for a GPU that has no kernels for them, and widen them; we refuse.  From
# NVIDIA's documentation of quantized types: FP8 from SM 8.9 on (Ada), FP4 from SM 10.0 on (Blackwell, and Thor).

LEAST_SM = {"float4e2m1": (10, 0), "float8e4m3fn": (8, 9)}  # type of a tensor -> compute capability
HOLDS = {"nvfp4": "float4e2m1", "nvfp4-weights": "float4e2m1", "fp8": "float8e4m3fn"}  # precision -> such a tensor


def missing_precision(precisions: Iterable[str], compute_capability: str) -> str | None:
    """The same of a manifest's words, where no graph is read."""
    found = tuple(map(int, compute_capability.split(".")))
    for precision in sorted(set(precisions) & HOLDS.keys()):
        least = LEAST_SM[HOLDS[precision]]
        if found < least:
            from_sm = f"{least[0]}.{least[1]}"
            return f"it is in {precision}, which GPUs multiply from SM {from_sm} on; this one has {compute_capability}"
    return None


def missing_kernels(outline: Outline, compute_capability: str) -> str | None:
    """The first weight that such a GPU does not multiply, in words; the coarsest numbers are looked for first."""
    major, minor = map(int, compute_capability.split("."))
    for kind, least in LEAST_SM.items():
        names = [name for name in outline.weights if outline.types[name] == kind]
        if names and (major, minor) < least:
            name = min(names, key=lambda name: (not name.endswith(".codes"), name))  # a weight rather than a zero-point
            return f"{name!r} is {kind}, which GPUs multiply from SM {least[0]}.{least[1]} on"
    return None


if __name__ == "__main__":
    print(json.dumps(_ask_driver()))
