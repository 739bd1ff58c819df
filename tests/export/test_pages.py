"""The snippets of docs/embedding*.md run as they stand; those of C and the browser in tests/examples/."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.export.nano import needs_opset_24
from tests.export.test_adapters import peft_adapter
from tests.runtimes.tiny_bundle import build

DOCS = Path(__file__).resolve().parents[2] / "docs"


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def with_programs(home: Path, **lines: str) -> dict[str, str]:
    """An environment in which a page's commands find these programs before others: name -> a line of sh; the line of
    `edgemm` is this checkout's."""
    (home / "bin").mkdir()
    for name, line in ({"edgemm": f'exec {sys.executable} -m edgemm "$@"'} | lines).items():
        (home / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (home / "bin" / name).chmod(0o755)
    return os.environ | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(DOCS.parent)}


def test_every_block_of_these_pages_is_run_by_a_test():
    """A block of another language, or one more, wants a test here or in tests/examples/."""
    found = {
        page.name: re.findall(r"^```(.*)\n", page.read_text(), re.MULTILINE) for page in DOCS.glob("embedding*.md")
    }
    opened = {page: [language for language in marks if language] for page, marks in found.items()}
    assert set(opened.pop("embedding.md")) == {"python"}
    assert opened == {"embedding-c.md": ["sh", "c"], "embedding-web.md": ["sh", "js"], "embedding-http.md": ["sh"]}


@needs_opset_24
def test_the_page_for_python_runs(export, model, tmp_path, monkeypatch):
    for package in ("llguidance", "openvino", "peft"):
        pytest.importorskip(package)
    export(tmp_path / "sticker.bundle", adapters=())
    peft_adapter(model, tmp_path / "run" / "adapters" / "openmoji", seed=1, rank=4)
    for number, name in enumerate(("heart.png", "star.png", "photo.jpg")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    before = (tmp_path / "heart.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in snippets("embedding.md", "python"):
        exec(compile(code, "docs/embedding.md", "exec"), names)
    assert names["reply"].token_ids and (tmp_path / "heart.png").read_bytes() != before
    for name in ("model", "mixed"):
        names[name].close()


def test_the_page_for_http_runs(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    build(tmp_path / "nano.bundle")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (code,) = snippets("embedding-http.md", "sh")
    given = with_programs(tmp_path)
    words = ["bash", "-e", "-c", code.replace("8000", port)]
    files = (tmp_path / "said").open("wb"), (tmp_path / "told").open("wb")
    shell = subprocess.Popen(words, cwd=tmp_path, env=given, stdout=files[0], stderr=files[1], start_new_session=True)
    try:
        assert shell.wait(300) == 0, (tmp_path / "told").read_text()
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
    said = (tmp_path / "said").read_text()
    drawn = json.loads(said[said.index("{") :])
    assert base64.b64decode(drawn["data"][0]["b64_json"]).startswith(b"\x89PNG")
