"""What comes in with what: heavy libraries stay behind the door that needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "onnx", "onnxruntime", "PIL", "tokenizers", "transformers", "safetensors", "openvino", "tensorrt"}


def heavy_after(code: str) -> set[str]:
    """The heavy libraries that are there after `code` ran in a new process."""
    tail = f"\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)), file=sys.__stderr__)"
    ran = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(eval(ran.stderr.strip().splitlines()[-1]))


def test_importing_edgemm_brings_nothing_heavy_and_not_even_numpy():
    assert heavy_after("import edgemm, sys; assert 'numpy' not in sys.modules") == set()


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["chat", "--help"], ["draw", "--help"], ["verify", "--help"], ["serve", "--help"]],
)
def test_asking_for_help_brings_nothing_heavy(words):
    assert heavy_after(f"from edgemm.cli.main import main; assert main({words!r}) == 0") == set()


def test_the_contract_needs_the_standard_library_only():
    modules = ", ".join(f"edgemm.bundle.{name}" for name in ("bundle", "manifest", "drawing", "components", "writer"))
    assert heavy_after(f"import {modules}, edgemm.errors, sys; assert 'numpy' not in sys.modules") == set()


def test_hashes_begin_before_what_reads_a_manifest_is_imported(tmp_path):
    code = f"""
import sys
import edgemm
from edgemm.bundle.held_file import FileHashes

def begin_weights(hashes, bundle):
    assert "edgemm.bundle.manifest" not in sys.modules and "numpy" not in sys.modules
    print("begun")

FileHashes.begin_weights = begin_weights
try:
    edgemm.load({str(tmp_path)!r})
except edgemm.BundleError:
    assert "edgemm.bundle.manifest" in sys.modules
else:
    raise AssertionError
"""
    assert heavy_after(code) == set()


def test_pictures_are_read_without_the_runtime():
    assert (
        heavy_after("import edgemm.bundle.picture, sys; assert not any('runtimes' in name for name in sys.modules)")
        == set()
    )


def test_the_runtime_never_brings_torch_or_onnx():
    """All of edgemm.runtimes is imported, with the one backend; the rest of the package is not."""
    code = (
        "import importlib, importlib.util, pkgutil, sys, edgemm.runtimes\n"
        "for found in pkgutil.walk_packages(edgemm.runtimes.__path__, 'edgemm.runtimes.'):\n"
        "    if found.name.endswith('openvino_backend') and not importlib.util.find_spec('openvino'):\n"
        "        continue\n"
        "    importlib.import_module(found.name)\n"
        "wings = [f'edgemm.{wing}' for wing in ('model', 'train', 'export', 'data', 'bench', 'quantize', 'verify')]\n"
        "assert not set(wings) & set(sys.modules)"
    )
    assert heavy_after(code) <= {"onnxruntime", "openvino", "tokenizers", "PIL"}


def test_every_verb_of_this_wing_is_there():
    for name in ("chat", "draw", "inspect", "verify"):
        path = ROOT / (VERBS[name].module.replace(".", "/") + ".py")
        assert path.is_file()
