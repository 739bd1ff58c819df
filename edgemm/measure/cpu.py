"""The processor as the kernel describes it: its name, and the instructions that decide which kernels are fast.

Reads text of /proc/cpuinfo, on x86 and on Arm; it measures nothing.
"""

from __future__ import annotations

import re

__all__ = ["ARM_FEATURES", "X86_FEATURES", "cpu_features", "cpu_model"]

X86_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)
ARM_FEATURES = ("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")

# Arm cores have no name in /proc/cpuinfo, only implementer and part.
ARM_CORES = {
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}


def cpu_model(cpuinfo: str) -> str:
    """The name of the first core, or what identifies it."""
    named = _field(cpuinfo, "model name")
    if named and "v8l" not in named:  # 32-bit view of an Arm: "ARMv8 Processor rev 1 (v8l)" names no core
        return named
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if implementer and part:
        return ARM_CORES.get((implementer, part), f"Arm core {part} by {implementer}")
    return named or "unknown"


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Those of X86_FEATURES or ARM_FEATURES that are there, in that order."""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(name for name in (*X86_FEATURES, *ARM_FEATURES) if name in flags)


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else None
