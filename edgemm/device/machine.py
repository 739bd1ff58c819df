"""What this machine gives a process: cores, memory, disk, and the names that belong on a report.

In a container the machine is larger than what may be used, so affinity and control groups are read too.  Every reader
takes a root folder, so recorded layouts can be read anywhere: psutil knows this machine alone, and no control groups.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ARM_FEATURES",
    "Board",
    "Machine",
    "X86_FEATURES",
    "cpu_features",
    "core_quota",
    "cpu_model",
    "give_back_memory",
    "read_board",
    "read_count",
    "read_machine",
    "read_plain",
    "read_fact",
    "this_processor",
]

LARGEST_FILE_BYTES = 4 << 20  # /proc/cpuinfo of 512 cores has 1 MB
LONGEST_NAME = 80  # of a board, a processor, a distribution
CONTROLS = re.compile(r"[\x01-\x08\x0b-\x1f\x7f-\x9f]")
NO_LIMIT_BYTES = 2**60  # control groups v1 write "no limit" as a number near 2**63


@dataclass(frozen=True)
class Machine:
    """None stands for what could not be read."""

    system: str  # kernel and architecture
    distribution: str | None
    python: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int  # in the machine
    cores_usable: float  # left by affinity and control groups; 1.5 is a quota of one core and a half
    memory_bytes: int | None  # of the machine
    memory_limit_bytes: int | None  # of this process's control group; None when it has none
    memory_available_bytes: int | None
    disk_free_bytes: int | None  # where the bundle is, or here
    governor: str | None = None  # of the cores' clocks: "performance", "schedutil"; a guest often is not told


def read_machine(root: Path = Path("/"), disk: Path = Path(".")) -> Machine:
    cpuinfo = read_fact(root / "proc/cpuinfo")
    memory = _meminfo(read_fact(root / "proc/meminfo"))
    limit = memory_limit(root)
    available = memory.get("MemAvailable")
    if limit is not None and available is not None:
        available = min(available, limit)
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        distribution=_distribution(read_fact(root / "etc/os-release")),
        python=platform.python_version(),
        cpu=cpu_model(cpuinfo),
        cpu_features=cpu_features(cpuinfo),
        cores=cores,
        cores_usable=min(_allowed_cores() if root == Path("/") else cores, core_quota(root) or cores),
        memory_bytes=memory.get("MemTotal"),
        memory_limit_bytes=limit,
        memory_available_bytes=available,
        disk_free_bytes=_disk_free(disk),
        governor=read_fact(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
    )


def read_fact(path: Path) -> str:
    """The file's text, without what a terminal obeys; "" when it cannot be read, because no such file is an answer
    too."""
    try:
        return CONTROLS.sub("", read_plain(path).replace(b"\0", b"\n").decode(errors="replace")).strip()
    except OSError:
        return ""


def read_plain(path: Path) -> bytes:
    """The first MBs of a plain file; OSError for anything else: a recorded folder is a stranger's, and a pipe or
    /dev/zero in it would be read for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        return stream.read(LARGEST_FILE_BYTES)


def read_count(text: str) -> int | None:
    """None where the text is no number that a kernel would write."""
    return int(text) if re.fullmatch("[0-9]{1,19}", text) else None


def _allowed_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _control_groups(root: Path) -> list[Path]:
    """This process's group and its ancestors: a quota on any of them binds."""
    base = root / "sys/fs/cgroup"
    found = re.search(r"^0::/(.*)$", read_fact(root / "proc/self/cgroup"), re.MULTILINE)
    group = base / (found.group(1) if found and ".." not in found.group(1) else "")
    return [folder for folder in (group, *group.parents) if folder == base or base in folder.parents]


def core_quota(root: Path = Path("/")) -> float | None:
    """Cores that this process's control group and its ancestors leave it; None without a quota."""
    pairs = [read_fact(folder / "cpu.max").partition(" ")[::2] for folder in _control_groups(root)]
    pairs += [tuple(read_fact(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))]
    numbers = [(read_count(quota), read_count(period)) for quota, period in pairs]
    return min((quota / period for quota, period in numbers if quota and period), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process's control group may take, where it has a limit."""
    texts = [read_fact(folder / "memory.max") for folder in _control_groups(root)]
    own = re.search(r"^\d+:memory:/(.*)$", read_fact(root / "proc/self/cgroup"), re.MULTILINE)  # version 1
    for name in {"", own.group(1) if own and ".." not in own.group(1) else ""}:
        texts.append(read_fact(root / "sys/fs/cgroup/memory" / name / "memory.limit_in_bytes"))
    return min((size for text in texts if (size := read_count(text)) and size < NO_LIMIT_BYTES), default=None)


def _meminfo(text: str) -> dict[str, int]:
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d{1,15}) kB", text, re.MULTILINE)}


def _distribution(os_release: str) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?', os_release, re.MULTILINE)
    return found.group(1)[:LONGEST_NAME] if found else None


def _disk_free(path: Path) -> int | None:
    import shutil

    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


# The processor as the kernel describes it: its name, and the instructions that decide which kernels are fast.
#
# Reads text of /proc/cpuinfo, on x86 and on Arm; it measures nothing.

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
FIRST_CORE_BYTES = 8192  # holds what /proc/cpuinfo says of one core; all of it takes a server milliseconds

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
        return named[:LONGEST_NAME]
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if implementer and part:
        return ARM_CORES.get((implementer, part), f"Arm core {part} by {implementer}")
    return named or "unknown"


def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What decides which kernels a library takes: the first core's name; its revision and every flag."""
    try:
        with open(cpuinfo, "rb", buffering=0) as stream:
            first = stream.read(FIRST_CORE_BYTES).decode(errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.processor() or platform.machine()}; {platform.machine()}"
    fields = ("vendor_id", "cpu family", "model", "stepping", "CPU variant", "CPU revision", "flags", "Features")
    return "; ".join([cpu_model(first), *filter(None, (_field(first, name) for name in fields))])


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Those of X86_FEATURES or ARM_FEATURES that are there, in that order."""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(name for name in (*X86_FEATURES, *ARM_FEATURES) if name in flags)


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else None


# Which Jetson this is, from the files its kernel and its Linux for Tegra leave: nothing is executed.
#
# /proc/device-tree/model and compatible (NUL-terminated), /etc/nv_tegra_release, and nvpmodel's own record of the power
# mode.  Every reader takes a root folder, so recorded boards can be read anywhere.


@dataclass(frozen=True)
class Soc:
    name: str
    compute_capability: str


SOCS = {
    "nvidia,tegra194": Soc("Xavier", "7.2"),
    "nvidia,tegra234": Soc("Orin", "8.7"),
    "nvidia,tegra264": Soc("Thor", "11.0"),
}
JETPACKS = {35: "5", 36: "6", 38: "7", 39: "7"}  # major of Linux for Tegra -> JetPack


@dataclass(frozen=True)
class Board:
    """None stands for what could not be read."""

    model: str  # as the device tree says it
    soc: str  # "Orin", "Thor"
    compute_capability: str  # of its GPU
    l4t: str | None  # Linux for Tegra, for example "36.4.3"
    jetpack: str | None  # its major number
    power_mode: str | None  # nvpmodel's name for it; clocks, and so every figure, hang on it

    @property
    def target(self) -> str | None:
        """The bundle target that is made for this board."""
        if self.soc == "Thor":
            return "jetson-thor"
        if self.soc == "Orin":
            return {"6": "jetson-orin-jp6", "7": "jetson-orin"}.get(self.jetpack or "")
        return None


def read_board(root: Path = Path("/")) -> Board | None:
    """None on everything that is no Jetson."""
    tree = root / "proc/device-tree"
    found = [SOCS[name] for name in read_fact(tree / "compatible").splitlines() if name in SOCS]
    if not found:
        return None
    major, l4t = _l4t(read_fact(root / "etc/nv_tegra_release"))
    return Board(
        model=read_fact(tree / "model").partition("\n")[0][:LONGEST_NAME] or "unknown Jetson",
        soc=found[0].name,
        compute_capability=found[0].compute_capability,
        l4t=l4t,
        jetpack=JETPACKS.get(major) if major else None,
        power_mode=_power_mode(root),
    )


def _l4t(release: str) -> tuple[int | None, str | None]:
    """`# R36 (release), REVISION: 4.3, GCID: ...` -> 36, "36.4.3"."""
    found = re.search(r"# R(\d{1,4}) \(release\), REVISION: ([\d.]{1,16})", release)
    return (int(found.group(1)), f"{found.group(1)}.{found.group(2)}") if found else (None, None)


def _power_mode(root: Path) -> str | None:
    """nvpmodel writes `pmode:0002`; the name of mode 2 stands in its configuration."""
    chosen = re.search(r"pmode:(\d{1,4})\b", read_fact(root / "var/lib/nvpmodel/status"))
    if not chosen:
        return None
    number = int(chosen.group(1))
    named = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S{{1,40}})", read_fact(root / "etc/nvpmodel.conf"))
    return named.group(1) if named else f"mode {number}"


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Of this process; None where nobody can tell."""
    pages = read_count("".join(read_fact(root / "proc/self/statm").split()[1:2]))
    return None if pages is None else pages * os.sysconf("SC_PAGE_SIZE")


M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES = -3, 1 << 20  # mallopt(3)


def keep_no_large_blocks() -> None:
    """What is freed of a MB and more goes back to the system at once: glibc else learns to keep blocks of up to 32 MB,
    which lie scattered between what stays."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def give_back_memory() -> None:
    """What was freed goes back to the system: glibc keeps it in pieces, 700 MB after a language model was rounded."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
