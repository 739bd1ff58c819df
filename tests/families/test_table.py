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
    title, why = NOT_BUILT[name]
    line = refusal(folder_of(tmp_path / "x", architectures=[name]), capsys, verb)
    assert f"{title} is known but not built: {why}" in line


@pytest.mark.parametrize("key", ["model_type", "_class_name"])
def test_it_is_known_by_any_of_the_names_that_a_config_has(tmp_path, capsys, key):
    config = {"architectures": ["ModelForCausalLM"], key: "mmada"}
    assert "MMaDA is known but not built" in refusal(folder_of(tmp_path / "x", **config), capsys)


@pytest.mark.parametrize("verb", ["export", "inspect", "estimate"])
def test_a_pipeline_of_diffusers_is_told_by_its_index(tmp_path, capsys, verb):
    place = tmp_path / "x"
    place.mkdir()
    index = place / "model_index.json"
    index.write_text(json.dumps({"_class_name": "OmniGen2Pipeline", "vae": ["diffusers", "AutoencoderKL"]}))
    assert "OmniGen2 is known but not built: its prompt runs" in refusal(place, capsys, verb)
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "no config.json but model_index.json, so a pipeline of diffusers (FluxPipeline)" in refusal(
        place, capsys, verb
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manifest.json", "it is a bundle"),
        ("adapter_config.json", "a PEFT adapter and no model"),
        ("llm/config.json", "2 folders below have one: llm, vae"),
        ("vae/config.json", "1 folder below has one: vae; name"),
    ],
)
def test_a_folder_without_a_config_is_told_what_it_is(tmp_path, capsys, name, said):
    place = tmp_path / "x"
    for file in (name, "vae/config.json"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("{}")
    assert said in refusal(place, capsys)


def test_a_checkpoint_is_no_bundle_yet(tmp_path, capsys):
    folder = folder_of(tmp_path / "x", architectures=["LlamaForCausalLM"])
    assert f"a checkpoint and no bundle; what it would become: edgemm inspect {folder} --estimate" in refusal(
        folder, capsys, "inspect"
    )


def test_pickled_weights_are_never_read(tmp_path, capsys):
    folder = folder_of(tmp_path / "x", architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=9)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    line = refusal(folder, capsys)
    assert "pytorch_model.bin, a pickle" in line and line.endswith(f"python -m edgemm.families.unpickle {folder}")


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
