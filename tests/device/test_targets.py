"""Verdicts for machines that are not here."""

from __future__ import annotations

import dataclasses

import pytest

from edgemm.device.fatbin import CudaCode
from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.device.machine import read_board
from edgemm.device.providers import Provider
from edgemm.device.targets import EXTRAS, Extra, Findings, driver_advice, find_system_tensorrt, judge, read_extra
from tests.bench.recorded import AGX_ORIN, AGX_ORIN_JP6, ORIN_NANO, PC, THOR, lay_out

NO_DRIVER = CudaDriver(None, (), "no CUDA driver")
RTX_4090 = CudaDriver("13.0", (Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30),), "")
CPU = Provider("CPUExecutionProvider", "")


def extras(*present: str, version: str = "10.16.2") -> dict[str, Extra]:
    return {
        name: Extra(
            name, {p: version for p in packages if p in present}, tuple(p for p in packages if p not in present)
        )
        for name, packages in EXTRAS.items()
    }


@pytest.mark.parametrize(
    ("files", "cuda", "code", "told"),
    [
        (None, RTX_4090, CudaCode((80, 89)), ""),
        (None, RTX_4090, CudaCode((90,)), "holds code for SM 9.0, this GPU is 8.9"),
        (ORIN_NANO, NO_DRIVER, CudaCode((89, 120)), "no code for a Jetson's SM 8.7 (the installed one holds 8.9"),
        (ORIN_NANO, NO_DRIVER, None, "no code for a Jetson's SM 8.7"),
    ],
    ids=["code for it", "code for another", "PyPI's wheel for Arm", "none installed"],
)  # fmt: skip
def test_a_wheel_without_code_for_this_gpu_is_told_with_what_helps(tmp_path, files, cuda, code, told):
    board = read_board(lay_out(tmp_path, files)) if files else None
    providers = (Provider("CUDAExecutionProvider", ""),)
    found = Findings(board, cuda, providers, extras("tokenizers", "pillow", "onnxruntime-gpu"), None, code)
    verdict = {verdict.target: verdict for verdict in judge(found)}["cuda"]
    assert told in verdict.problem and verdict.runs == (not told)
    assert ("export the bundle with --target" in verdict.cure) == bool(told)


def verdicts(board=None, cuda=NO_DRIVER, providers=(), present=()):
    return {verdict.target: verdict for verdict in judge(Findings(board, cuda, tuple(providers), extras(*present)))}


def test_every_target_of_the_design_is_judged():
    assert list(verdicts()) == ["cpu", "web", "cuda", "jetson-orin-jp6", "jetson-orin", "jetson-thor", "rtx"]


def test_a_bare_install_runs_nothing_and_says_how_to_begin():
    found = verdicts()
    assert not any(verdict.runs for verdict in found.values())
    assert found["cpu"].cure == "pip install 'edgemm[ort]'"


def test_a_cpu_with_onnxruntime_runs_cpu_bundles():
    found = verdicts(providers=[CPU], present=("onnxruntime", "tokenizers", "pillow", "tqdm"))
    assert [name for name, verdict in found.items() if verdict.runs] == ["cpu", "web"]


def test_onnxruntime_without_a_tokenizer_is_not_enough():
    cpu = verdicts(providers=[CPU], present=("onnxruntime", "pillow"))["cpu"]
    assert not cpu.runs and cpu.cure == "pip install tokenizers"


def test_a_gpu_with_a_broken_provider_does_not_run_cuda_bundles():
    broken = Provider("CUDAExecutionProvider", "libcudnn.so.9: cannot open shared object file")
    everything = ("onnxruntime-gpu", "tokenizers", "pillow", "tqdm")
    cuda = verdicts(cuda=RTX_4090, providers=[CPU, broken], present=everything)["cuda"]
    assert not cuda.runs and "libcudnn" in cuda.problem and cuda.cure == "pip install 'edgemm[cuda]'"


def test_a_gpu_without_its_onnxruntime_gets_the_line():
    cuda = verdicts(cuda=RTX_4090, providers=[CPU])["cuda"]
    assert not cuda.runs and cuda.cure == "pip install 'edgemm[cuda]'"


def test_every_board_is_told_what_it_lacks_and_gets_its_target_when_it_has_it(tmp_path):
    """From the files of an Orin Nano, an AGX Orin and a Thor to a verdict, with the backend that is really here."""
    for name, files, target in (
        ("nano", ORIN_NANO, "jetson-orin-jp6"),
        ("agx-jp6", AGX_ORIN_JP6, "jetson-orin-jp6"),
        ("agx", AGX_ORIN, "jetson-orin"),
        ("thor", THOR, "jetson-thor"),
    ):
        root = lay_out(tmp_path / name, files)
        board = read_board(root)
        bare = verdicts(board)
        assert "nvidia-jetpack" in bare[target].cure and not any(verdict.runs for verdict in bare.values())
        system = root / "usr/lib/python3.10/dist-packages/tensorrt"
        system.mkdir(parents=True)
        unseen = judge(Findings(board, NO_DRIVER, (), extras(), find_system_tensorrt(root)))
        (verdict,) = [verdict for verdict in unseen if verdict.target == target]
        assert str(system.parent) in verdict.problem and "--system-site-packages" in verdict.cure
        found = verdicts(board, present=("tensorrt", "tokenizers", "pillow", "tqdm"))
        assert [name for name, verdict in found.items() if verdict.runs] == [target]
        assert found[target].engine == "TensorRT 10.16.2, not tried on a device yet"


@pytest.mark.parametrize(
    ("files", "target", "version", "runs"),
    [
        (ORIN_NANO, "jetson-orin-jp6", "10.3.0", True),
        (ORIN_NANO, "jetson-orin-jp6", "8.6.2", False),
        (AGX_ORIN, "jetson-orin", "10.3.0", False),
        (THOR, "jetson-thor", "10.13.3", False),
        (THOR, "jetson-thor", "11.4.1", True),
    ],
)
def test_a_tensorrt_older_than_the_dialect_is_told(tmp_path, files, target, version, runs):
    board = read_board(lay_out(tmp_path, files))
    findings = Findings(board, NO_DRIVER, (), extras("tensorrt", "tokenizers", "pillow", version=version))
    (verdict,) = [verdict for verdict in judge(findings) if verdict.target == target]
    assert verdict.runs == runs and (runs or f"TensorRT {version} is here, {target} needs 10." in verdict.problem)


@pytest.mark.parametrize(("files", "target"), [(ORIN_NANO, "jetson-orin-jp6"), (THOR, "jetson-thor")])
def test_a_jetson_takes_its_own_target_alone(tmp_path, files, target):
    board = read_board(lay_out(tmp_path, files))
    found = verdicts(board, present=("tensorrt", "tokenizers", "pillow", "tqdm"))
    assert [name for name, verdict in found.items() if verdict.runs] == [target]
    assert target in found["cuda"].cure


def test_a_jetson_without_tensorrt_is_told_where_it_comes_from(tmp_path):
    board = read_board(lay_out(tmp_path, ORIN_NANO))
    assert "nvidia-jetpack" in verdicts(board)["jetson-orin-jp6"].cure


def test_an_old_gpu_is_no_rtx_and_a_second_one_may_be():
    old, new = Gpu("Tesla V100", "7.0", 16 << 30), RTX_4090.gpus[0]
    alone = verdicts(cuda=CudaDriver("12.4", (old,), ""), present=EXTRAS["tensorrt-rtx"])["rtx"]
    both = verdicts(cuda=CudaDriver("12.4", (old, new), ""), present=EXTRAS["tensorrt-rtx"])["rtx"]
    assert "7.5 or newer): Tesla V100 has 7.0" in alone.problem and not alone.cure
    assert not both.runs and both.cure == "--device rtx:1"


def test_a_driver_that_is_too_old_is_what_has_to_be_updated():
    """The words are CUDA's for its error 35; the wheel's name says which CUDA it is made for."""
    old = CudaDriver("12.4", RTX_4090.gpus, "")
    said = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    everything = extras("onnxruntime-gpu", "tensorrt-rtx", "tokenizers", "pillow", "tqdm")
    found = Findings(None, old, (Provider("CUDAExecutionProvider", said),), everything, rtx_cuda=13)
    told = {verdict.target: verdict for verdict in judge(found)}
    assert not told["cuda"].runs and not told["rtx"].runs
    assert told["cuda"].cure == told["rtx"].cure == "update NVIDIA's driver: this one runs up to CUDA 12.4"
    newer = dataclasses.replace(found, cuda=RTX_4090)
    assert {verdict.target: verdict.runs for verdict in judge(newer)}["rtx"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2\n"}, "driver for Windows"),
        ({"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65\n"}, "--gpus all"),
        ({f"sys/bus/pci/devices/0000:01:00.0/{k}": v for k, v in {"vendor": "0x10de", "class": "0x030000"}.items()},
         "install NVIDIA's driver"),
        ({f"sys/bus/pci/devices/0000:01:00.1/{k}": v for k, v in {"vendor": "0x10de", "class": "0x040300"}.items()},
         ""),
        ({}, ""),
    ],
    ids=["WSL2", "container", "card without driver", "sound alone", "no card"],
)  # fmt: skip
def test_a_card_that_shows_without_its_driver_gets_the_line_that_brings_it(tmp_path, files, told):
    advice = driver_advice(lay_out(tmp_path, {**PC, **files}))
    assert told in advice and bool(advice) == bool(told)
    found = {verdict.target: verdict for verdict in judge(Findings(None, NO_DRIVER, (), extras(), driver_cure=advice))}
    assert found["cuda"].cure == found["rtx"].cure == advice


@pytest.mark.parametrize(
    ("release", "told"),
    [("# R35 (release), REVISION: 4.1,", "no target is made for Orin with JetPack 5"),
     ("# R41 (release), REVISION: 1.0,", "no target is made for Orin with Linux for Tegra 41.1.0"),
     ("", "no target is made for Orin with Linux for Tegra of no release file")],
)  # fmt: skip
def test_a_board_with_another_jetpack_is_told_which_one_would_do(tmp_path, release, told):
    board = read_board(lay_out(tmp_path, {**ORIN_NANO, "etc/nv_tegra_release": release}))
    verdict = verdicts(board)["jetson-orin-jp6"]
    assert (verdict.problem, verdict.cure) == (told, "JetPack 6.2 or 7.2 has one")


def test_a_jetson_is_not_told_to_install_a_pcs_wheels(tmp_path):
    board = read_board(lay_out(tmp_path, ORIN_NANO))
    told = {name: read_extra(name, board).cure for name in ("cuda", "tensorrt", "tensorrt-rtx")}
    assert not any("pip install" in cure for cure in told.values()) and "nvidia-jetpack" in told["tensorrt"]
    assert "not for Jetsons" in verdicts(board)["rtx"].problem


def test_a_jetson_with_tensorrt_and_no_tokenizer_is_not_ready(tmp_path):
    board = read_board(lay_out(tmp_path, ORIN_NANO))
    verdict = verdicts(board, present=("tensorrt", "pillow"))["jetson-orin-jp6"]
    assert (verdict.problem, verdict.cure) == ("missing: tokenizers", "pip install 'edgemm[ort]'")
