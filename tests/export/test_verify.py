"""`edgemm verify` on exported bundles: it passes what was exported, anywhere and without torch, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle.manifest import Manifest
from edgemm.cli.main import main
from edgemm.runtimes.model import Model
from tests.export.nano import PRECISIONS, needs_opset_24, rehash

pytestmark = needs_opset_24

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(bundles, tmp_path):
    def run(precision="fp32") -> Path:
        return Path(shutil.copytree(bundles[precision], tmp_path / "copy.bundle"))

    return run


@pytest.fixture
def fails(capsys):
    def run(code, path, *words):
        assert main(["verify", str(path), *words]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("edgemm: error: "), lines
        return lines[0]

    return run


def weights_of(path: Path, component: str) -> str:
    data = Manifest.from_json((path / "manifest.json").read_text()).variant(component, "cpu").data
    assert data
    return data


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fresh_bundle_passes(bundles, precision, capsys):
    assert main(["verify", str(bundles[precision]), "--parity"]) == 0
    *compared, summary = capsys.readouterr().out.splitlines()
    judged = [line for line in compared if "(not judged)" not in line]
    assert len(compared) == (9 if precision == "fp32" else 11)
    assert judged and all(line.startswith("-[✓] ") for line in judged)
    assert summary.endswith("5 graphs are as exported and compute what was recorded")


def test_a_fresh_bundle_passes_where_torch_is_not_even_imported(bundles):
    code = (
        "import sys; from edgemm.cli.main import main\n"
        f"assert main(['verify', {str(bundles['int8'])!r}, '--parity', '--json']) == 0\n"
        "assert not {'torch', 'onnx', 'onnxscript', 'transformers'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)["parity"]) == 11


@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_in_a_weights_file(copy, fails, place):
    path = copy()
    data = path / weights_of(path, "denoiser")
    content = bytearray(data.read_bytes())
    content[place] ^= 1
    data.write_bytes(content)
    assert "cpu-fp32.onnx.data: SHA-256" in fails(7, path)


@pytest.mark.parametrize(
    ("precision", "component", "said"),
    [
        ("fp32", "transformer", "next tokens"),
        ("int8", "transformer", "next tokens"),
        ("int4", "transformer", "next tokens"),
        ("fp32", "image_encoder", "'What is this?' with a picture"),
        ("int8", "conditioner", "denoise loop"),
        ("int8", "denoiser", "denoise loop"),
    ],
)
def test_a_graph_that_computes_something_else_though_its_hashes_fit(copy, fails, precision, component, said):
    """Its weights in another order: sound numbers, at the wrong places."""
    path = copy(precision)
    name = weights_of(path, component)
    content = np.frombuffer((path / name).read_bytes(), dtype=np.uint32)
    (path / name).write_bytes(content[::-1].tobytes())
    rehash(path, name)
    assert main(["verify", str(path), "--no-parity"]) == 0
    line = fails(7, path)
    assert said in line or "NaN or infinity" in line


def test_answers_that_are_no_numbers(copy, fails):
    path = copy()
    name = weights_of(path, "denoiser")
    (path / name).write_bytes(np.full((path / name).stat().st_size // 4, np.nan, dtype=np.float32).tobytes())
    rehash(path, name)
    assert "denoiser, step 1 of 6: NaN or infinity" in fails(7, path)


def test_another_unconditional_prefix(copy, fails):
    """It is read by no graph's hash: only drawing shows it."""
    path = copy()
    name = "prefix/unconditional.safetensors"
    content = (path / name).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    numbers = np.frombuffer(content[header:], dtype=np.uint8).copy()
    floats = numbers[: len(numbers) // 4 * 4].view(np.float32)
    floats *= -1
    (path / name).write_bytes(content[:header] + numbers.tobytes())
    rehash(path, name)
    assert "denoise loop" in fails(7, path)


def test_a_bundle_that_recorded_nothing(copy, fails):
    path = copy()
    document = json.loads((path / "manifest.json").read_text())
    del document["files"]["parity.json"]
    (path / "manifest.json").write_text(json.dumps(document))
    (path / "parity.json").unlink()
    assert "parity.json: missing" in fails(3, path)


def test_a_machine_that_runs_out_of_memory_is_not_a_difference(bundles, fails, monkeypatch):
    from edgemm.errors import ResourceError

    def out_of_memory(*_, **__):
        raise ResourceError("transformer: out of memory")

    monkeypatch.setattr(Model, "generate_text", out_of_memory)
    assert "out of memory" in fails(5, bundles["fp32"])
