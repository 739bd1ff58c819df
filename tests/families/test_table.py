"""Folders that no family can take: one line that says why, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemm.cli.main import main
from edgemm.families.folder import find_foreign
from edgemm.families.table import FAMILIES, NOT_BUILT


def folder_of(path: Path, **config) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def refusal(folder: Path, capsys, verb: str = "export") -> str:
    output = folder.parent / "out.bundle"
    words = {"export": ["--output", str(output)], "estimate": ["--estimate"]}.get(verb, [])
    assert main([verb.replace("estimate", "inspect"), str(folder), *words]) == 3
    assert not output.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_an_unknown_architecture_is_answered_with_the_list_of_families(tmp_path, capsys):
    line = refusal(folder_of(tmp_path / "x", architectures=["MambaForCausalLM"], model_type="mamba"), capsys)
    assert "MambaForCausalLM" in line and "docs/families.md" in line
    assert all(name in line for name in FAMILIES)


@pytest.mark.parametrize("verb", ["export", "inspect", "estimate"])
@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_known_architecture_that_is_not_built_says_what_is_in_the_way(tmp_path, capsys, name, verb):
    assert NOT_BUILT[name] in refusal(folder_of(tmp_path / "x", architectures=[name]), capsys, verb)


def test_a_checkpoint_is_no_bundle_yet(tmp_path, capsys):
    folder = folder_of(tmp_path / "x", architectures=["LlamaForCausalLM"])
    assert f"a checkpoint and no bundle; what it would become: edgemm inspect {folder} --estimate" in refusal(
        folder, capsys, "inspect"
    )


def test_pickled_weights_are_never_read(tmp_path, capsys):
    folder = folder_of(tmp_path / "x", architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=9)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin, a pickle" in refusal(folder, capsys)


def test_code_in_the_folder_is_never_run(tmp_path, capsys):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    folder = folder_of(tmp_path / "x", **config)
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    refusal(folder, capsys)
    assert not (tmp_path / "ran").exists()


def test_edgemms_own_checkpoints_are_not_foreign(tmp_path):
    assert find_foreign(folder_of(tmp_path / "x", name="mine", family="mot")) is None


def test_every_family_has_what_export_asks_for():
    import importlib

    for module in set(FAMILIES.values()):
        assert {"CANNOT", "parts", "pieces"} <= set(dir(importlib.import_module(module)))
