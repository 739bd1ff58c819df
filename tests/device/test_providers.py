"""Providers are believed when they have run something."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from packaging.version import Version

from edgemm.device import providers


def test_the_cpu_provider_runs_the_model():
    onnxruntime = pytest.importorskip("onnxruntime")
    found = {provider.name: provider for provider in providers.probe_providers()}
    assert found["CPUExecutionProvider"].usable
    newest = found["CPUExecutionProvider"].newest_opset
    assert newest and newest >= (
        24 if Version(onnxruntime.__version__) >= Version("1.24") else 21
    )  # onnxruntime's own versioning table
    assert "AzureExecutionProvider" not in found


@pytest.mark.parametrize("name", ["CUDAExecutionProvider", "NoSuchExecutionProvider"])
def test_a_provider_that_falls_back_is_not_usable(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    if name in onnxruntime.get_available_providers():
        pytest.skip(f"this machine may have {name}")
    assert providers._probe(name, timeout_s=60).problem


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_library_that_is_not_there_is_told_and_no_talk_of_a_fallback(monkeypatch, tmp_path):
    """By the loader, of a provider that is made for it: ONNX Runtime says so to its log alone."""
    onnxruntime, compiler = pytest.importorskip("onnxruntime"), shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a provider with")
    (tmp_path / "capi").mkdir()
    for name, wants in (("cublas", ""), ("providers_shared", ""), ("providers_cuda", "cublas")):
        linked = [f"-L{tmp_path}/capi", "-Wl,--no-as-needed", f"-l:libonnxruntime_{wants}.so"] if wants else []
        words = [compiler, "-shared", "-x", "c", "/dev/null", "-o", f"capi/libonnxruntime_{name}.so", *linked]
        subprocess.run(words, cwd=tmp_path, check=True)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "capi/libonnxruntime_cublas.so").unlink()
    lacks = "libonnxruntime_cublas.so: cannot open shared object file"
    assert providers._run("CUDAExecutionProvider")["problem"].startswith(lacks)
    assert providers.what_it_lacks("CPUExecutionProvider") == ""


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cudas_libraries_that_came_as_wheels_are_loaded_before_it_is_asked(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("libraries"))
    providers._run("CUDAExecutionProvider")
    assert loaded == ["libraries"]


def test_the_doctor_imports_no_library_in_its_own_process():
    code = (
        "import sys\n"
        "import edgemm.device.doctor, edgemm.cli.doctor\n"
        "sys.exit(', '.join({'torch', 'onnx', 'onnxruntime', 'PIL', 'tokenizers'} & set(sys.modules)) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
