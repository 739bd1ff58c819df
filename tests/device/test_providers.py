"""Providers are believed when they have run something."""

from __future__ import annotations

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
