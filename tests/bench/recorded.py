"""Files that machines leave under /: enough of each to be recognised.

Device trees and releases are those that owners of the boards posted: AGX Orin in NVIDIA/jetson-gpio#125 and
rbonghi/jetson_stats#864, Thor in rbonghi/jetson_stats#711; Orin Nano in #400, with the release file of JetPack 6.2.
Cores, memory and power modes of AGX Orin and Thor are what NVIDIA says of them, in the form of those files.
"""

from __future__ import annotations

from pathlib import Path


def _cores(count: int, part: str) -> str:
    return "".join(
        f"processor\t: {core}\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp "
        "asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc flagm paca pacg\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
        for core in range(count)
    )


def _modes(*names: str) -> str:
    return "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(names))


ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003\0nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0003\0"
    "nvidia,p3767-0005\0nvidia,tegra234\0nvidia,tegra23x\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
    "proc/meminfo": "MemTotal:        7802792 kB\nMemFree:         4152792 kB\nMemAvailable:    5312312 kB\n",
    "proc/cpuinfo": _cores(6, "0xd42"),
}
AGX_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0"
    "nvidia,tegra234\0nvidia,tegra23x\0",
    "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun  1 09:28:48 PM UTC 2026\n",
    "var/lib/nvpmodel/status": "pmode:0000",
    "etc/nvpmodel.conf": _modes("MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
    "proc/meminfo": "MemTotal:       64324608 kB\nMemFree:        58000000 kB\nMemAvailable:   60000000 kB\n",
    "proc/cpuinfo": _cores(12, "0xd42"),
}
AGX_ORIN_JP6 = {
    **AGX_ORIN,
    "etc/nv_tegra_release": ORIN_NANO["etc/nv_tegra_release"],
    "var/lib/nvpmodel/status": "pmode:0003",
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 22 00:55:42 UTC 2025\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": _modes("MAXN", "120W", "90W", "70W"),
    "proc/meminfo": "MemTotal:      128790528 kB\nMemFree:       120000000 kB\nMemAvailable:  122000000 kB\n",
    "proc/cpuinfo": _cores(14, "0xd83"),
}
PC = {
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\n"
    "flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8\n\n"
    "processor\t: 1\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu sse2 avx2 avx512f\n\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n",
    "etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\n',
    "proc/self/cgroup": "0::/system.slice/job.scope\n",
    "sys/fs/cgroup/system.slice/job.scope/cpu.max": "max 100000\n",
    "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/system.slice/job.scope/memory.max": "4294967296\n",
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """Writes them under `root`, as a machine would have them under /."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
