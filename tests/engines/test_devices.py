"""Which device an engine is for, on machines that are not here; and what is said where something lacks."""

from __future__ import annotations

import pytest

from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.device.machine import read_board
from edgemm.engines import bundle_engines as devices
from edgemm.engines.bundle_engines import choose_destinations, install_line
from edgemm.engines.engine_spec import Place
from edgemm.errors import BundleError, MissingError, UsageError
from tests.bench.recorded import AGX_ORIN, AGX_ORIN_JP6, ORIN_NANO, THOR, lay_out
from tests.engines.tiny_engines import needs_rtx

ALL = ("cpu", "cuda", "rtx", "jetson-orin-jp6", "jetson-orin", "jetson-thor")
ORIN = CudaDriver("12.6", (Gpu("Orin", "8.7", 8 << 30),), "")
AGX = CudaDriver("13.2", (Gpu("Orin", "8.7", 64 << 30),), "")
BLACKWELL = CudaDriver("13.2", (Gpu("Thor", "11.0", 128 << 30),), "")
RTX = CudaDriver("13.0", (Gpu("RTX 4090", "8.9", 24 << 30), Gpu("RTX 5090", "12.0", 32 << 30)), "")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A board's files under a root, a driver, and the packages that are installed."""

    def make(board=None, cuda=ORIN, **versions):
        root = lay_out(tmp_path / "root", board or {})
        monkeypatch.setattr(devices, "probe_cuda", lambda: cuda)
        monkeypatch.setattr(devices, "installed_version", versions.get)
        monkeypatch.setattr(devices, "find_spec", versions.get)
        return root

    return make


@pytest.mark.parametrize(
    ("board", "cuda", "target", "power_mode"),
    [
        (ORIN_NANO, ORIN, "jetson-orin-jp6", "MAXN_SUPER"),
        (AGX_ORIN_JP6, AGX, "jetson-orin-jp6", "MODE_50W"),
        (AGX_ORIN, AGX, "jetson-orin", "MAXN"),
        (THOR, BLACKWELL, "jetson-thor", "120W"),
    ],
    ids=["Orin Nano", "AGX Orin, JetPack 6.2", "AGX Orin, JetPack 7.2", "Thor"],
)
def test_a_board_gets_the_target_that_is_made_for_it(machine, board, cuda, target, power_mode):
    root = machine(board, cuda, tensorrt="10.16.0")
    (found,) = choose_destinations(ALL, None, None, None, root)
    assert (found.target, found.tensorrt, found.version) == (target, "tensorrt", "10.16.0")
    (gpu,) = cuda.gpus
    assert found.place == Place(gpu.compute_capability, gpu.name, gpu.memory_bytes, cuda.version or "", power_mode)


def test_a_board_refuses_another_boards_target(machine):
    with pytest.raises(UsageError, match="this board takes target jetson-orin-jp6, not jetson-thor"):
        choose_destinations(ALL, "jetson-thor", None, None, machine(ORIN_NANO, tensorrt="10.3.0"))


def test_a_pc_builds_for_rtx_and_for_the_gpu_that_is_named(machine):
    root = machine(cuda=RTX, **{"tensorrt-rtx": "1.7"})
    (found,) = choose_destinations(ALL, None, None, "cuda:1", root)
    assert (found.target, found.tensorrt, found.place.gpu) == ("rtx", "tensorrt_rtx", "RTX 5090")
    assert found.place.number == 1, "by which its builder sees that GPU alone"
    with pytest.raises(MissingError, match="no device cuda:2 to build for: there are 2 GPUs"):
        choose_destinations(ALL, None, None, "cuda:2", root)


def test_without_a_driver_nothing_of_nvidias_is_touched(machine):
    root = machine(cuda=CudaDriver(None, (), "no CUDA driver: libcuda.so.1 is not on this machine"))
    with pytest.raises(MissingError, match=r"libcuda.so.1 is not .*; without one: --target rtx --sm 86,89"):
        choose_destinations(ALL, None, None, None, root)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("jetson-orin", "86", None), UsageError, "--sm names devices that are not here"),
        (("rtx", "86", "cuda:0"), UsageError, "--sm names devices that are not here"),
        (("rtx", "87", None), UsageError, "SM '87' is none of what TensorRT for RTX builds for: 75, 80, 86"),
        ((None, None, "gpu0"), UsageError, "device is 'gpu0', expected cuda:0"),
        ((None, None, "cuda:" + "9" * 5000), UsageError, "device is 'cuda:9{35}', expected cuda:0"),
        (("cpu", None, None), UsageError, "no engine is built for target 'cpu'"),
    ],
)
def test_words_that_make_no_sense(machine, words, kind, message):
    with pytest.raises(kind, match=message):
        choose_destinations(ALL, *words, machine(cuda=RTX, tensorrt="10.3.0", **{"tensorrt-rtx": "1.7"}))


def test_a_bundle_without_the_target_says_which_it_has(machine):
    with pytest.raises(BundleError, match="the bundle has no target 'jetson-orin-jp6', only: cpu; export it"):
        choose_destinations(("cpu",), None, None, None, machine(ORIN_NANO, tensorrt="10.3.0"))


@needs_rtx
def test_devices_that_are_not_here_need_no_driver():
    found = choose_destinations(("rtx",), "rtx", "8.6,120,86", None)
    assert [place.place for place in found] == [Place("8.6", here=False), Place("12.0", here=False)]


def test_what_lacks_comes_with_this_platforms_line(machine, tmp_path):
    root = machine(ORIN_NANO)
    with pytest.raises(MissingError, match="tensorrt is not installed: sudo apt-get install nvidia-jetpack") as told:
        choose_destinations(ALL, None, None, None, root)
    assert told.value.exit_code == 4
    (root / "usr/lib/python3.10/dist-packages/tensorrt").mkdir(parents=True)
    line = install_line("tensorrt", read_board(root), root)
    assert "JetPack's is in" in line and "python3.10/dist-packages, where this environment does not look" in line
    assert line.endswith("python3 -m venv --system-site-packages .venv")
    assert install_line("tensorrt_rtx", None) == "pip install 'edgemm[tensorrt-rtx]'"
