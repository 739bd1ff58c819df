"""The doctor's list of extras, beside the one that pip reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgemm.device import targets
from edgemm.device.targets import EXTRAS, read_extra

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def declared_by(extra: str, others: bool = True) -> set[str]:
    """Packages that a current Python gets, with those of other extras of ours in it or without."""
    found: set[str] = set()
    for each in map(Requirement, DECLARED[extra]):
        if each.marker is None or each.marker.evaluate({"python_version": "3.12"}):
            if each.name != "edgemm":
                found.add(each.name)
            elif others:
                found |= set().union(*map(declared_by, each.extras))
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_holds_what_pyproject_declares(extra):
    """What is there of another extra may be told or left to that one."""
    assert declared_by(extra, others=False) <= set(EXTRAS[extra]) <= declared_by(extra)


def test_a_gpu_gets_cudas_libraries_and_an_onnx_runtime_that_reads_its_graphs():
    """Opset 24 came to onnxruntime 1.24; 1.31 is the oldest whose CUDA kernels were looked at."""
    (package,) = [
        each
        for each in map(Requirement, DECLARED["cuda"])
        if each.name == "onnxruntime-gpu" and each.marker and each.marker.evaluate({"python_version": "3.12"})
    ]
    assert package.extras == {"cuda", "cudnn"}
    assert not package.specifier.contains("1.30.0") and package.specifier.contains("1.31.0")


def test_no_extra_is_forgotten():
    assert set(DECLARED) - set(EXTRAS) == {"dev"}


@pytest.fixture
def installed(monkeypatch):
    versions: dict[str, str] = {}
    monkeypatch.setattr(targets, "installed_version", versions.get)
    return versions


def test_a_missing_extra_comes_with_its_line(installed):
    installed.update(tokenizers="0.23.3")
    extra = read_extra("ort")
    assert (extra.versions, extra.missing) == (
        {"tokenizers": "0.23.3"},
        ("onnxruntime", "safetensors", "pillow", "tqdm"),
    )
    assert extra.cure == "pip install 'edgemm[ort]'"


def test_torch_is_installed_first_and_by_itself(installed):
    """By uv, which takes the CPU build where there is no GPU."""
    first, then = read_extra("train").cure.rsplit(" && ", 1)
    assert first.endswith("uv pip install --torch-backend=auto torch==2.13.0") and then == "pip install 'edgemm[train]'"


def test_the_package_that_owns_the_same_import_goes_first(installed):
    installed.update(onnxruntime="1.32.0")
    assert read_extra("cuda").cure == "pip uninstall -y onnxruntime && pip install 'edgemm[cuda]'"


def test_a_complete_extra_needs_nothing(installed):
    installed.update(bitsandbytes="0.50.2")
    assert read_extra("quantize").cure == ""
