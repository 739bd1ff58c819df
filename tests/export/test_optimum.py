"""`optimum-cli export edgemm`, found by Optimum's own hook, in Optimum's own process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgemm.bundle.bundle import open_bundle
from tests.export.nano import needs_opset_24

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "optimum" / "commands" / "register"


def optimum_version() -> str:
    try:
        return metadata.version("optimum")
    except metadata.PackageNotFoundError:
        return ""


needs_optimum = pytest.mark.skipif(not optimum_version(), reason="pip install 'edgemm[optimum]': Optimum is not here")


def optimum_cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *words]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )


def test_the_hook_is_a_namespace_folder_that_leaves_optimum_whole():
    """An __init__.py in any of its folders would hide Optimum's own modules."""
    assert [path.name for path in HOOK.iterdir() if path.suffix == ".py"] == ["register_edgemm.py"]
    assert not list((ROOT / "optimum").rglob("__init__.py"))


@needs_optimum
def test_optimum_tells_of_it_and_of_its_flags():
    shown = optimum_cli("export", "edgemm", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--target" in shown.stdout and "--precision" in shown.stdout and "CHECKPOINT" not in shown.stderr


@needs_optimum
def test_what_is_wrong_is_one_line_with_edgemms_exit_code(tmp_path):
    failed = optimum_cli("export", "edgemm", str(tmp_path / "none"), "--output", str(tmp_path / "x.bundle"))
    assert failed.returncode == 3, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("edgemm: error: ") and not (tmp_path / "x.bundle").exists()


@needs_optimum
@needs_opset_24
@pytest.mark.slow
def test_it_writes_the_same_bundle(checkpoint_path, tmp_path):
    path = tmp_path / "nano.bundle"
    made = optimum_cli("export", "edgemm", str(checkpoint_path), "--precision", "int8", "--output", str(path))
    assert made.returncode == 0, made.stderr
    assert "every comparison passed" in made.stdout
    assert open_bundle(path).manifest.targets.keys() == {"cpu"}
