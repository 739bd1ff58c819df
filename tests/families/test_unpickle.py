"""Pickles of weights become safetensors in a process of their own, and a program in one is never run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgemm.errors import CheckpointError, InputError
from edgemm.families.unpickle import convert, how


class Program:
    """What an honest folder never holds."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


def test_the_line_of_the_refusal_converts_every_pickle(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    saved(tmp_path / "pytorch_model.bin", {"a": weight.T, "same": weight.T, "half": weight.bfloat16()})
    saved(tmp_path / "vae.pth", {"state_dict": {"b": weight}}, _use_new_zipfile_serialization=False)
    done = subprocess.run([sys.executable, *how(tmp_path).split()[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "pytorch_model.safetensors")
    assert found["a"].equal(weight.T) and found["same"].equal(weight.T) and found["half"].dtype == torch.bfloat16
    assert load_file(tmp_path / "vae.safetensors")["b"].equal(weight)
    again = subprocess.run([sys.executable, *how(tmp_path).split()[1:]], capture_output=True, text=True)
    assert again.returncode == InputError.exit_code and "exists already" in again.stderr


def test_a_program_in_a_pickle_is_not_run(tmp_path):
    trace = tmp_path / "ran"
    with pytest.raises(CheckpointError, match="torch reads no weights in it"):
        convert(saved(tmp_path / "x.bin", {"a": Program(trace)}))
    assert not trace.exists() and not list(tmp_path.glob("*.safetensors"))


def test_what_is_no_table_of_tensors_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="steps is no tensor"):
        convert(saved(tmp_path / "x.pt", {"a": torch.ones(1), "steps": 3}))
    with pytest.raises(CheckpointError, match="holds a list"):
        convert(saved(tmp_path / "y.pt", [torch.ones(1)]))
