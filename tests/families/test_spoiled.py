"""Folders of the five published families with one thing wrong: one line that names it, exit 3, before any tracing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from edgemm.cli.main import main
from tests.families.golden import Cases

APART = {"janusflow": ("vae",), "showo2": ("llm", "clip", "vae"), "mobileo": ("sana",), "bagel": (), "cosmos3-edge": ()}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
GONE = object()
PIXELS, MODEL = "checkpoint/preprocessor_config.json", "checkpoint/config.json"


def say(path: str, *keys: str, value: object):
    """A setting of a JSON file changed."""

    def spoil(home: Path) -> None:
        document = json.loads((home / path).read_text())
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner.pop(keys[-1], None)
        if value is not GONE:
            inner[keys[-1]] = value
        (home / path).write_text(json.dumps(document))

    return spoil


def be(path: str, content: bytes | None):
    """A file with other content, or none."""

    def spoil(home: Path) -> None:
        (home / path).unlink() if content is None else (home / path).write_bytes(content)

    return spoil


def whole_numbers(path: str):
    """The first weight's numbers called whole ones."""

    def spoil(home: Path) -> None:
        raw = (home / path).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        next(entry for name, entry in header.items() if name.endswith("proj.weight"))["dtype"] = "I16"
        new = json.dumps(header).encode()
        (home / path).write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + size :])

    return spoil


FAULTS = [
    ("janusflow", be("checkpoint/tokenizer.json", None), "no tokenizer; expected tokenizer.json"),
    ("janusflow", be("checkpoint/tokenizer.json", POINTER), "tokenizer.json: a Git-LFS pointer"),
    ("janusflow", be("checkpoint/config.json", b"[1, 2]"), "expected"),
    ("janusflow", be("vae/config.json", POINTER), "vae/config.json: a Git-LFS pointer"),
    ("janusflow", say(PIXELS, "image_std", value="half"), "image_std is 'half', expected 3 numbers"),
    ("janusflow", say(PIXELS, "image_std", value=[0.5]), "image_std is [0.5], expected 3 numbers"),
    ("janusflow", say(PIXELS, "image_std", value=[0, 0, 0]), "image_std is [0, 0, 0], which is divided by"),
    ("janusflow", say(PIXELS, "image_mean", value=GONE), "image_mean is None, expected 3 numbers"),
    ("janusflow", say(PIXELS, "background_color", value="grey"), "background_color is 'grey', expected 3 numbers"),
    ("janusflow", say(MODEL, "language_config", "max_position_embeddings", value=0), "reads 0 tokens at most"),
    ("janusflow", say(MODEL, "language_config", "rope_theta", value=0), "rope_theta is 0, expected a number above 0"),
    (
        "mobileo",
        say("sana/vae/config.json", "scaling_factor", value="0.4"),
        "scaling_factor is '0.4'",
    ),
    ("mobileo", say("sana/vae/config.json", "latent_channels", value=5), "its config says (32, 5, 3, 3)"),
    ("showo2", be("checkpoint/config.json", POINTER), "config.json"),
    ("showo2", be("llm/tokenizer.json", POINTER), "llm/tokenizer.json: a Git-LFS pointer"),
    ("bagel", be("checkpoint/config.json", b"[1, 2]"), "config.json"),
    ("bagel", whole_numbers("checkpoint/ema.safetensors"), "has whole numbers (int16), expected floats"),
    ("cosmos3-edge", be("checkpoint/config.json", b"[1, 2]"), "config.json"),
    ("cosmos3-edge", be("checkpoint/model.safetensors.index.json", None), "names those in folders below, such as tran"),
    ("cosmos3-edge", be("checkpoint/scheduler/scheduler_config.json", POINTER), "a Git-LFS pointer"),
]


@pytest.mark.parametrize(("family", "spoil", "message"), FAULTS)
def test_a_spoiled_folder_says_what_is_wrong_in_one_line(tmp_path, capsys, family, spoil, message):
    home = tmp_path / "home"
    shutil.copytree(Cases(family).folder, home, copy_function=shutil.copyfile)
    spoil(home)
    parts = [f"--component={name}={home / name}" for name in APART[family]]
    code = main(["export", str(home / "checkpoint"), "--output", str(home / "out.bundle"), *parts])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgemm: error")]
    assert (code, len(said)) == (3, 1) and message in said[0], said
    assert "a bug" not in said[0] and not (home / "out.bundle").exists()
