"""The flags that every verb with a model shares do what they say."""

from __future__ import annotations

import json

import pytest

from edgemm.cli.draw import read_backend
from edgemm.cli.main import main


def test_a_backend_is_for_all_components_or_for_some():
    assert read_backend(None) is None
    assert read_backend("openvino") == "openvino"
    assert read_backend("denoiser=openvino, image_decoder=openvino-bf16") == {
        "denoiser": "openvino",
        "image_decoder": "openvino-bf16",
    }


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--backend", "painter=openvino"], 2, "component 'painter'"),
        (["--memory-limit-mb", "1"], 5, "this bundle needs at least"),
        (["--adapter-strength", "0.5"], 2, "--adapter-strength says how much of --adapter is added, and there is none"),
        (["--adapter", "nowhere"], 3, "takes no adapters: export it again with --adapters"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(bundle_path, capsys, flags, code, message):
    assert main(["chat", str(bundle_path), "--device", "cpu", "--prompt", "hello", *flags]) == code
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_verbose_says_who_runs_what_and_what_memory_it_takes(bundle_path, capsys):
    pytest.importorskip("openvino")
    words = ["chat", str(bundle_path), "--device", "cpu", "--prompt", "hello", "--verbose", "--max-new-tokens", "2"]
    assert main([*words, "--backend", "transformer=openvino"]) == 0
    told = capsys.readouterr().err
    assert "transformer on cpu with openvino (CPU f32)" in told and "kB a token of conversation" in told


def test_a_schema_in_a_file_makes_the_reply_json(bundle_path, tmp_path, capsys):
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["heart", "star"]}))
    words = ["chat", str(bundle_path), "--device", "cpu", "--prompt", "hello", "--json-schema", str(schema)]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) in ("heart", "star")
    assert main([*words[:-1], str(tmp_path / "none.json")]) == 3
