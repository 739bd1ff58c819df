"""For which device, and with which TensorRT, an engine is to be built: a caller's words and this machine -> a place.

`--target rtx --sm 86,89` builds for devices that are not here, with TensorRT for RTX, which needs no GPU.  Everything
else is for a device of this machine, and the CUDA driver is asked before any TensorRT object exists: without a driver
some versions take the process down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgemm.device.board import Board, read_board
from edgemm.device.gpu import CudaDriver, probe_cuda
from edgemm.device.packages import installed_version
from edgemm.device.targets import find_system_tensorrt
from edgemm.engines.engine_spec import Place
from edgemm.errors import BundleError, MissingError, UsageError

__all__ = ["Destination", "choose_destinations", "install_line"]

RTX_SMS = ("75", "80", "86", "89", "120", "121")
PACKAGES = {  # target -> the Python package that builds for it
    "rtx": "tensorrt_rtx",
    "jetson-orin-jp6": "tensorrt",
    "jetson-orin": "tensorrt",
    "jetson-thor": "tensorrt",
}


@dataclass(frozen=True)
class Destination:
    target: str
    tensorrt: str  # Python package
    version: str
    place: Place


def choose_destinations(
    offered: tuple[str, ...], target: str | None, sms: str | None, device: str | None, root: Path = Path("/")
) -> tuple[Destination, ...]:
    """`offered` are the bundle's targets."""
    if sms is not None:
        if target not in (None, "rtx") or device is not None:
            raise UsageError(
                "--sm names devices that are not here: only --target rtx builds for those, without --device"
            )
        return _elsewhere(_offered("rtx", offered), sms, read_board(root))
    board, cuda = read_board(root), probe_cuda()
    number = _number(device)
    if number >= len(cuda.gpus):
        found = cuda.problem or f"there are {len(cuda.gpus)} GPUs"
        raise MissingError(f"no device cuda:{number} to build for: {found}; without one: --target rtx --sm 86,89")
    chosen = _offered(target or (board.target if board and board.target else "rtx"), offered)
    if board and board.target != chosen:
        raise UsageError(f"this board takes target {board.target}, not {chosen}")
    package = PACKAGES[chosen]
    version = _version(package, board, root)
    return (Destination(chosen, package, version, _here(board, cuda, number)),)


def _elsewhere(target: str, sms: str, board: Board | None) -> tuple[Destination, ...]:
    version = _version(PACKAGES[target], board, Path("/"))
    names = [name.strip().replace(".", "") for name in sms.split(",")]
    for name in names:
        if name not in RTX_SMS:
            raise UsageError(f"SM {name!r} is none of what TensorRT for RTX builds for: {', '.join(RTX_SMS)}")
    places = [Place(f"{name[:-1]}.{name[-1]}", here=False) for name in dict.fromkeys(names)]
    return tuple(Destination(target, PACKAGES[target], version, place) for place in places)


def _offered(target: str, offered: tuple[str, ...]) -> str:
    if target not in PACKAGES:
        raise UsageError(f"no engine is built for target {target!r}, expected one of: {', '.join(PACKAGES)}")
    if target not in offered:
        raise BundleError(f"the bundle has no target {target!r}, only: {', '.join(offered)}; export it for that target")
    return target


def _number(device: str | None) -> int:
    found = re.fullmatch(r"cuda(?::(\d+))?", device or "cuda")
    if not found:
        raise UsageError(f"device is {device!r}, expected cuda:0 or another number")
    return int(found.group(1) or 0)


def _here(board: Board | None, cuda: CudaDriver, number: int) -> Place:
    gpu = cuda.gpus[number]
    return Place(
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
        gpu_memory_bytes=gpu.memory_bytes,
        cuda_driver=cuda.version or "",
        power_mode=(board.power_mode if board else None) or "",
    )


def _version(package: str, board: Board | None, root: Path) -> str:
    """Of an installed package; MissingError with this platform's own line where it is not there."""
    version = installed_version(package.replace("_", "-"))
    if version is None and find_spec(package) is None:
        raise MissingError(f"{package} is not installed: {install_line(package, board, root)}")
    return version or "unknown"


def install_line(package: str, board: Board | None, root: Path = Path("/")) -> str:
    if package == "tensorrt_rtx" or board is None:
        return f"pip install 'edgemm[{package.replace('_', '-')}]'"
    environment = "python3 -m venv --system-site-packages .venv"
    system = find_system_tensorrt(root)
    if system:
        return f"JetPack's is in {system.parent}, where this environment does not look: make it with {environment}"
    return f"sudo apt-get install nvidia-jetpack, then make the environment with: {environment}"
