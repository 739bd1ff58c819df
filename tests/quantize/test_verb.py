"""The command from a user's chair: a spec, a bundle made of it that passes its own gate, and refusals in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgemm.bundle.bundle import open_bundle
from edgemm.cli.main import main
from edgemm.model import checkpoint
from tests.export.nano import left_behind, needs_opset_24, random_nano


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "nano"
    checkpoint.save(random_nano(), path)
    return path


@pytest.fixture(scope="module")
def spec_path(checkpoint_path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("specs") / "spec"
    assert main(["quantize", str(checkpoint_path), "--draw", "w4a8", "--rank", "4", "--output", str(path)]) == 0
    return path


@needs_opset_24
def test_a_spec_becomes_a_bundle_that_passes_its_gate(checkpoint_path, spec_path, tmp_path, capsys):
    bundle = tmp_path / "x.bundle"
    assert main(["export", str(checkpoint_path), "--quant", str(spec_path), "--output", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "target cpu, as the spec says" in said and "every comparison passed" in said
    manifest = open_bundle(bundle).manifest
    assert manifest.quantization["transformer"] == manifest.quantization["denoiser"] == "int4"
    assert json.loads((bundle / "quant.json").read_text()) == json.loads((spec_path / "quant.json").read_text())


def test_the_spec_may_lie_in_its_checkpoint(checkpoint_path, spec_path, tmp_path):
    inside = tmp_path / "nano"
    shutil.copytree(checkpoint_path, inside)
    before = checkpoint.weights_hash(inside)
    shutil.copytree(spec_path, inside / "quant")
    assert checkpoint.weights_hash(inside) == before


def test_data_that_nothing_is_calibrated_on_is_told(checkpoint_path, tmp_path, capsys):
    text = tmp_path / "words.txt"
    text.write_text("A cat sits on a red chair. " * 400)
    for words, told in ((("--method", "rtn"), True), ((), False)):
        command = ["quantize", str(checkpoint_path), "--text", "int8", "--calibration", str(text), *words]
        assert main([*command, "--output", str(tmp_path / f"spec-{told}")]) == 0
        assert (f"{text}: not used" in capsys.readouterr().out) == told


def refused(capsys, code: int, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_refusals(checkpoint_path, spec_path, tmp_path, capsys):
    other = tmp_path / "other"
    model = random_nano()
    model.denoiser.position.data += 1
    checkpoint.save(model, other)
    out = str(tmp_path / "out")
    quantize = ("quantize", str(checkpoint_path), "--output", out)
    for code, words, message in (
        (3, ("export", str(other), "--quant", str(spec_path), "--output", out), "was made from checkpoint nano"),
        (
            2,
            ("export", str(checkpoint_path), "--quant", str(spec_path), "--precision", "int8", "--output", out),
            "not both",
        ),
        (
            3,
            ("export", str(checkpoint_path), "--quant", str(tmp_path / "none"), "--output", out),
            "quant.json is missing",
        ),
        (
            3,
            ("export", str(checkpoint_path), "--quant", str(spec_path), "--target", "rtx", "--output", out),
            "TensorRT takes no 'block' activations",
        ),
        (2, (*quantize, "--text", "int3"), "--text 'int3' is none of"),
        (2, (*quantize, "--method", "image=rtn"), "--method names 'image'"),
        (2, (*quantize, "--rank", "0"), "--rank is 0"),
        (2, (*quantize, "--rank", "4"), "--rank 4 is of svd's branch, and no side has one"),
        (2, (*quantize, "--tasks-limit", "5"), "give --tasks DIR too"),
        (2, (*quantize, "--tasks-seeds", "3"), "give --tasks DIR too"),
        (3, (*quantize, "--calibration", str(tmp_path / "none.txt")), "no such file"),
        (3, ("quantize", str(checkpoint_path), "--output", str(checkpoint_path)), "exists already"),
        (3, ("quantize", str(checkpoint_path), "--overwrite", "--output", str(checkpoint_path)), "is no spec"),
    ):
        assert message in refused(capsys, code, *words)
        assert left_behind(tmp_path) == ["other"]
